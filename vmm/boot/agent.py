"""The guest's side of `vmm.testing`: a script that answers requests on the first channel (hvc1).

A request is a line; words that may hold anything are in base64.  Each answer starts with a line of numbers: a status, and
how many bytes of what follow.

    run COMMAND             STATUS OUT_BYTES ERR_BYTES, then both
    push PATH BYTES MODE    then the bytes; STATUS 0 0
    pull PATH               STATUS BYTES 0, then the bytes
"""

CHANNEL_TTY = "/dev/hvc1"

AGENT = f"""#!/bin/sh
for try in $(seq 400); do [ -c {CHANNEL_TTY} ] && break; usleep 50000; done
exec <{CHANNEL_TTY} >{CHANNEL_TTY} 2>/dev/null
stty raw -echo
work=/tmp/.agent
mkdir -p $work
cd /root
echo ready
while read -r verb first size mode; do
    word=$(echo "$first" | base64 -d)
    case $verb in
        run)
            $inside /bin/sh -c "$word" </dev/null >$work/out 2>$work/err
            echo "$? $(stat -c %s $work/out) $(stat -c %s $work/err)"
            cat $work/out $work/err
            ;;
        push)
            [ "$size" = 0 ] && : >$work/in || head -c "$size" >$work/in
            cat $work/in >"$word" && chmod "$mode" "$word"
            echo "$? 0 0"
            ;;
        pull)
            if cat "$word" >$work/out; then
                echo "0 $(stat -c %s $work/out) 0"
                cat $work/out
            else
                echo "1 0 0"
            fi
            ;;
    esac
done
"""
