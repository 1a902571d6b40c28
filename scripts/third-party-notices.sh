#!/usr/bin/env bash
# Prints the notices of every crate that is linked into hotshelf: its licence, and the texts that it ships. Needs cargo and
# perl. Fails when a crate has neither a licence nor a text.
#
# Most licences require that the text accompanies binaries. Equal texts are printed once, under all crates that ship them.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
# Normal dependencies only: those of builds and tests are not in the binary.
linked=$(cargo tree --locked --package hotshelf --edges normal,no-proc-macro --target "$target" --prefix none --format '{p}')
metadata=$(cargo metadata --locked --format-version 1 --filter-platform "$target")

LINKED=$linked perl -MJSON::PP -MFile::Basename -MFile::Find -e '
    use strict;
    use warnings;
    local $/;
    my $metadata = decode_json(<STDIN>);
    my %linked;
    for my $line (split /\n/, $ENV{LINKED}) {
        $linked{"$1 $2"} = 1 if $line =~ /^(\S+) v(\S+)/;
    }
    my (%crates_of, @list, @textless);
    for my $package (sort { $a->{name} cmp $b->{name} } @{ $metadata->{packages} }) {
        my $name = "$package->{name} $package->{version}";
        # The crates of this workspace have no source.
        next unless $linked{$name} && defined $package->{source};
        my @texts;
        my $directory = dirname($package->{manifest_path});
        my $take = sub {
            return unless -f && basename($_) =~ /^(?:licen[cs]e|copying|notice|unlicense|copyright)/i;
            return if /\.rs$|\.toml$/;
            open my $file, "<", $_ or die "$_: $!\n";
            my $text = <$file>;
            $text =~ s/\r//g;
            $text =~ s/\A\s+|\s+\z//g;
            push @texts, $text;
        };
        find({ wanted => $take, no_chdir => 1, preprocess => sub { grep { !/^(?:tests?|benches|examples|target)$/ } @_ } }, $directory);
        my $license = $package->{license} // "see its text below";
        die "$name has neither a licence nor a text\n" unless defined $package->{license} || @texts;
        push @list, "$name: $license" . ($package->{repository} ? ", $package->{repository}" : "");
        # Some packages have only the name of the licence.
        push @textless, "$name: $license, by " . (join(", ", @{ $package->{authors} }) || "its contributors") unless @texts;
        push @{ $crates_of{$_} }, $name for @texts;
    }
    die "no crate is linked\n" unless @list;
    binmode STDOUT, ":raw";
    print "hotshelf is licensed under Apache-2.0. It contains these crates:\n\n";
    print "$_\n" for @list;
    print "\nThese ship no text of their licence:\n\n", map { "$_\n" } @textless if @textless;
    for my $text (sort { $crates_of{$a}[0] cmp $crates_of{$b}[0] || $a cmp $b } keys %crates_of) {
        my %seen;
        my $crates = join ", ", grep { !$seen{$_}++ } @{ $crates_of{$text} };
        print "\n", "=" x 80, "\n$crates\n\n$text\n";
    }
' <<<"$metadata"
