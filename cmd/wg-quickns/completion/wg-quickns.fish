# fish completion for wg-quickns; to try it: wg-quickns completion fish | source
function __wg_quickns_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l list (command wg-quickns completion -- $words[2..-1] 2>/dev/null)
    if string match -qr '^:' -- "$list[1]"
        # a command line of its own, of which the last word is not to be quoted
        set -l last $words[-1]
        set -e words[1..(string sub -s 2 -- $list[1])] words[-1]
        complete -C (string join ' ' -- (string escape -- $words) "$last")
        return 0
    end
    printf '%s\n' $list
end
complete -c wg-quickns -f -a '(__wg_quickns_complete)'
