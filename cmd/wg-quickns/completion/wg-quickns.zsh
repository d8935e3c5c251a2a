#compdef wg-quickns
# zsh completion for wg-quickns; to try it: . <(wg-quickns completion zsh)
_wg_quickns() {
  local -a list plain open
  local item
  list=("${(@f)$(command wg-quickns completion -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ ${list[1]} == :* ]]; then
    local first=${list[1]#:}
    shift $first words
    ((CURRENT -= first))
    _normal
    return
  fi
  for item in "${list[@]}"; do
    [[ -n $item ]] || continue
    if [[ ${item%%$'\t'*} == *[/:=] ]]; then
      open+=("$item")
    else
      plain+=("${${item%%$'\t'*}//:/\\:}${${(M)item:#*$'\t'*}:+:${item#*$'\t'}}")
    fi
  done
  local code=1
  (($#plain)) && _describe -t values value plain && code=0
  (($#open)) && compadd -S '' -- "${open[@]}" && code=0
  return $code
}
if [[ $funcstack[1] == _wg-quickns ]]; then # a file in fpath
  _wg_quickns "$@"
elif (($+functions[compdef])); then
  compdef _wg_quickns wg-quickns
fi
