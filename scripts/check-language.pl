#!/usr/bin/env perl
# Checks the words of comments and documents:
# - personal pronouns stand in at most 1 of 1,000 words of comments, counted over the whole tree;
# - every name in backticks, in comments and documents, occurs in the code, or in scripts/external-names.txt.
use strict;
use warnings;

my $PRONOUNS = qr/\b(?:who|whoever|whose|whom|nobody|somebody|everybody|anybody|someone|everyone|anyone|we|our|ours|us|he|him|his|she|her)\b/i;
my $LIMIT = 1 / 1000;

my @files = grep { -f && !/^(?:target|\.git)\// } split /\n/, `git ls-files -co --exclude-standard`;
my $is_code = qr/\.(?:rs|proto|sql|sh|pl|lua|toml|ya?ml|json|js|lock|txt|csv|conf|py)$|(?:^|\/)(?:Makefile|Dockerfile|run)$/;
my (%known, @texts, @pronouns);
my $words = 0;

# Returns the comments of a file, [line, text] each, and the rest of it.
sub split_comments {
    my ($file, @lines) = @_;
    my $mark = $file =~ /\.(?:rs|proto|js)$/ ? qr{//[/!]?} : $file =~ /\.(?:sql|lua)$/ ? qr{--} : qr{\#};
    my (@comments, @code);
    for my $n (0 .. $#lines) {
        # A mark in a string is none: it follows a quote or a colon (https://).
        if ($lines[$n] =~ /^(\s*|.*[^:"'\w]\s)($mark)(\s.*)$/ && $lines[$n] !~ /^#!/) {
            push @code, $1;
            push @comments, [$n + 1, $3];
        } else {
            push @code, $lines[$n];
        }
    }
    return (\@comments, join "\n", @code);
}

for my $file (@files) {
    next unless $file =~ $is_code || $file =~ /\.md$/;
    open my $handle, '<:encoding(UTF-8)', $file or die "$file: $!\n";
    chomp(my @lines = <$handle>);
    if ($file =~ /\.md$/) {
        my $fenced = 0;
        for my $n (0 .. $#lines) {
            $fenced = !$fenced if $lines[$n] =~ /^\s*```/;
            push @texts, [$file, $n + 1, $lines[$n]] unless $fenced || $file eq 'CHANGELOG.md';
        }
        next;
    }
    my ($comments, $code) = split_comments($file, @lines);
    $known{$_} = 1 for $code =~ /\w+/g;
    # Metrics are named with dots in the code and with underscores in the exposition, counters with _total.
    for my $metric ($code =~ /"(hotshelf(?:\.\w+)+)"/g) {
        (my $exposed = $metric) =~ tr/./_/;
        $known{"$exposed$_"} = 1 for '', '_total', '_seconds', '_bytes', '_seconds_bucket';
    }
    $known{$_} = 1 for $file =~ /\w+/g;
    next if $file !~ /\.(?:rs|proto|sql|sh|lua|toml)$/ || $file =~ m{^proto/google/};
    for my $comment (@$comments) {
        push @texts, [$file, @$comment];
        $words++ while $comment->[1] =~ /[A-Za-z]+/g;
        push @pronouns, "$file:$comment->[0]: $1" while $comment->[1] =~ /($PRONOUNS)/g;
    }
}

if (open my $handle, '<', 'scripts/external-names.txt') {
    while (<$handle>) { $known{$_} = 1 for /^#/ ? () : /\w+/g }
}

# An environment variable is the option in capitals; JSON has fields in camel case.
sub is_known {
    my ($name) = @_;
    return 1 if $known{$name} || $known{lc $name};
    (my $snake = $name) =~ s/(?<=[a-z])([A-Z])/_\l$1/g;
    return $known{$snake};
}

my $failed = 0;
my $rate = $words ? @pronouns / $words : 0;
if ($rate > $LIMIT) {
    print "$_\n" for @pronouns;
    printf "%d personal pronouns in %d words of comments: %.1f of 1,000, at most %.0f\n",
        scalar @pronouns, $words, 1000 * $rate, 1000 * $LIMIT;
    $failed = 1;
}
for my $text (@texts) {
    my ($file, $line, $said) = @$text;
    while ($said =~ /`([^`]+)`/g) {
        my $name = $1;
        # Formulas, patterns and examples with placeholders are no names.
        next if $name =~ /[<>…*?|]|\.\.\.|^cargo test/;
        my @unknown = grep { !/^\d/ && length > 1 && !is_known($_) } $name =~ /\w+/g;
        next unless @unknown;
        print "$file:$line: `$name`: nothing in the tree is named @unknown\n";
        $failed = 1;
    }
}
exit $failed if $failed;
printf "language: %d personal pronouns in %d words of comments (%.2f of 1,000)\n", scalar @pronouns, $words, 1000 * $rate;
