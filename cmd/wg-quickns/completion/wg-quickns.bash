# bash completion for wg-quickns; to try it: . <(wg-quickns completion bash)
_wg_quickns() {
  local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT} list words word
  # COMP_WORDS has `--namespace=x' and `docker:web' in parts: take the line apart at blanks.
  IFS=$' \t\n' read -ra words <<<"$line"
  [[ $line == *[[:blank:]] ]] && words+=('')
  while ((${#words[@]})) && [[ ${words[0]##*/} != wg-quickns ]]; do words=("${words[@]:1}"); done # sudo
  ((${#words[@]} > 1)) || return 0
  word=${words[-1]}
  mapfile -t list < <(command wg-quickns completion -- "${words[@]:1}" 2>/dev/null)
  if [[ ${list[0]-} == :* ]]; then
    local first=$((COMP_CWORD - (${#words[@]} - 1 - ${list[0]#:})))
    if declare -F _command_offset >/dev/null; then
      _command_offset "$first"
    elif ((first == COMP_CWORD)); then
      mapfile -t COMPREPLY < <(compgen -c -- "$word")
    else
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      compopt -o filenames 2>/dev/null
    fi
    return 0
  fi
  COMPREPLY=("${list[@]%%$'\t'*}")
  [[ ${#list[@]} -eq 1 && ${COMPREPLY[0]} == *[/:=] ]] && compopt -o nospace 2>/dev/null
  # what readline replaces begins behind the last of these
  local cut=${word%"${word##*[:=]}"}
  [[ $COMP_WORDBREAKS == *:* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"$cut"}")
  return 0
}
complete -F _wg_quickns wg-quickns
