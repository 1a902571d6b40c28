# Outlives the process that started it until one server is stopped and its directory removed.
#
# Standard input is a pipe whose other end only that process holds. Each line is the pid of the
# server to watch, or empty when the server was stopped; the end of the input means that the owner
# dropped the watchdog or has ended.
#
# $1: the signal that stops the server; $2: the directory to remove, or empty.

# `rm` has to be found even when the owner's PATH is minimal.
PATH=$PATH:/usr/bin:/bin
pid=
while read -r line; do pid=$line; done

# PostgreSQL's backends leave the process group of the postmaster, so they are found by their
# parent.
children() { cat "/proc/$pid/task/$pid/children" 2>/dev/null || pgrep -P "$pid"; }

if [ -n "$pid" ]; then
    kill -s "$1" "$pid"
    kill -s CONT "$pid" $(children)
    tries=0
    while kill -s 0 "$pid" && [ "$tries" -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -s KILL $(children) "$pid"
fi
[ -n "$2" ] && rm -rf -- "$2"
exit 0
