#!/usr/bin/env bash
# Checks the fences between the modules (ARCHITECTURE.md) in the text of the sources: prints `file:line: rule` for each
# breach, and fails if there is one. `check-fences.sh DIRECTORY` checks another tree.
set -euo pipefail
cd "${1:-"$(dirname "$0")/.."}"

perl - <<'PERL'
use strict;
use warnings;

# The modules that each module may import (`*`: all). A module that is not listed is a breach.
# Every module may import proto, the generated messages, unless it is in `no_proto`.
my $LEAVES = 'findings urls product moment caller entry metrics traces drain supervisor pause controls recent_changes refusals';
my %imports = (
    proto     => '',
    product   => '',
    moment    => '',
    caller    => '',
    findings  => '',
    urls      => '',
    entry     => 'product moment',
    pause     => '',
    recent_changes => 'product moment',
    controls  => '',
    metrics   => 'product traces',
    traces    => 'caller',
    drain     => 'metrics supervisor',
    supervisor => 'metrics',
    hot_cache => "$LEAVES recent_changes",
    hot_keys  => $LEAVES,
    redis     => $LEAVES,
    postgres  => "$LEAVES recent_changes",
    import    => "$LEAVES postgres",
    attach    => 'postgres',
    openapi   => '',
    doctor    => "$LEAVES config postgres redis rpc",
    catalog   => "$LEAVES recent_changes hot_cache hot_keys redis postgres",
    relay     => "$LEAVES redis postgres",
    rpc       => "$LEAVES catalog openapi",
    admin     => $LEAVES,
    logging   => 'metrics',
    refusals  => 'metrics',
    # config creates the options that each part declares.
    config    => "$LEAVES hot_cache hot_keys redis postgres attach import catalog relay rpc admin logging",
    app       => '*',
    lib       => '*',
    main      => '*',
);
my %no_proto = map { $_ => 1 } qw(findings urls product moment caller pause metrics drain supervisor recent_changes);

# Names that only some modules may use: pattern, modules, rule.
my @fences = (
    [qr/(?<!\w)(?<!opentelemetry_proto::)tonic(?:_\w+)?\s*(?:::|;|\bas\b)/, 'rpc app proto', 'tonic is for rpc, app and the generated proto'],
    [qr/(?<!\w)fred\s*(?:::|;|\bas\b)/,           'redis',         'fred is for redis'],
    [qr/(?<!\w)sqlx\s*(?:::|;|\bas\b)/,           'postgres',      'sqlx is for postgres'],
    [qr/(?<!\w)mini_moka\s*(?:::|;|\bas\b)/,      'hot_cache',     'mini_moka is for hot_cache'],
    [qr/\bstd\s*::\s*(?:\{[^{};]*)?\benv\b|(?<![\w:])env\s*::|\bdotenvy\s*::|\bfrom_default_env\b/,
     'config main', 'the environment is read by config and main only'],
    [qr/\b(?:option_)?env!/, 'config main', 'env! is for config and main, but for CARGO_PKG_* and OUT_DIR'],
    # In hot_cache each cache has its own thread for the eviction policy.
    [qr/\bthread_local!/, 'metrics hot_cache', 'thread_local! is for metrics and hot_cache'],
    # NEXT_THREAD (metrics) only assigns threads to shards, and ALLOCATOR holds nothing of an instance.
    [qr/(?<![\w'])static\s+(?:mut\s+|ref\s+)?(?!(?:NEXT_THREAD|ALLOCATOR)\b)\w+\s*:|\b(?:OnceLock|LazyLock|once_cell|lazy_static)\b/,
     '', 'no process-wide state: two instances run in one test'],
    [qr/\bsuper\s*::\s*super\b/, '', 'write crate::, which this script can check'],
);

my $LONGEST = 400;

my $breaches = 0;

sub breach {
    my ($file, $line, $rule) = @_;
    print "$file:$line: $rule\n";
    $breaches++;
}

sub line_at { 1 + (substr($_[0], 0, $_[1]) =~ tr/\n//) }

# The text with comments and literals blanked; line numbers stay the same.
sub code_of {
    my ($text) = @_;
    my $blank = sub { (my $same = shift) =~ s/[^\n]/ /g; $same };
    # These are facts of the package, not of the environment at run time.
    $text =~ s/\benv!\("(?:CARGO_PKG_\w+|OUT_DIR)"\)/$blank->($&)/ge;
    $text =~ s{( //[^\n]*
               | /\*.*?\*/
               | \bb?r(\#*)".*?"\2
               | "(?:\\.|[^"\\])*"
               | '(?:\\[^\n']+|\\'|[^\\'\n])' )}{$blank->($1)}gesx;
    return $text;
}

# [name of a module of this crate, offset] for each path that begins with `crate::`.
sub crate_paths {
    my ($code) = @_;
    my @paths;
    while ($code =~ /\bcrate\s*::\s*(?:(\w+)|(\{(?:[^{}]++|(?2))*\}))/g) {
        my ($name, $group, $at) = ($1, $2, $-[0]);
        if (defined $name) { push @paths, [$name, $at]; next }
        $group = substr $group, 1, -1;
        1 while $group =~ s/\{[^{}]*\}//g;
        push @paths, map { [$_, $at] } $group =~ /(?:^|,)\s*(\w+)/g;
    }
    return @paths;
}

sub check_source {
    my ($file, $text) = @_;
    my ($module) = $file =~ m{^src/(\w+)};
    my $code = code_of($text);

    my $allowed = $imports{$module};
    if (!defined $allowed) {
        breach($file, 1, "module $module is not in the table of scripts/check-fences.sh; add it with the modules that it may import");
        $allowed = '*';
    }
    my %may = map { $_ => 1 } split(' ', $allowed), $module;
    $may{proto} = 1 unless $no_proto{$module};
    for my $path (crate_paths($code)) {
        my ($name, $at) = @$path;
        # Skip a macro or a type at the root of the crate: it is no module.
        next if $allowed eq '*' || $may{$name} || !(-e "src/$name.rs" || -d "src/$name" || $imports{$name});
        my $rule = "$module must not import crate::$name (see the table in scripts/check-fences.sh)";
        breach($file, line_at($code, $at), $rule);
    }

    # A static in thread_local! is not process-wide; the rule for thread_local! covers it.
    my $shared = $code;
    $shared =~ s{thread_local!\s*\K(\{(?:[^{}]++|(?1))*\})}{(my $blank = $1) =~ s/[^\n]/ /g; $blank}ge;
    for my $fence (@fences) {
        my ($pattern, $modules, $rule) = @$fence;
        next if grep { $_ eq $module } split ' ', $modules;
        breach($file, line_at($shared, $-[0]), $rule) while $shared =~ /$pattern/g;
    }
}

open my $find, '-|', 'find', grep({ -d } qw(src tests)), '-name', '*.rs', '-type', 'f' or die "find: $!";
my @files = sort map { s/\n//r } <$find>;
die "check-fences: no sources here\n" unless @files;
for my $file (@files) {
    open my $in, '<', $file or die "$file: $!";
    my $text = do { local $/; <$in> } // '';
    my $lines = ($text =~ tr/\n//);
    if ($lines > $LONGEST) {
        breach($file, $LONGEST + 1, "$lines lines, more than $LONGEST: split the file");
    }
    check_source($file, $text) if $file =~ m{^src/};
}
if ($breaches) {
    print STDERR "check-fences: $breaches breach(es)\n";
    exit 1;
}
print "check-fences: ", scalar @files, " files, no breach\n";
PERL
