# Paths as Hydra overrides: sourced by the other scripts. Hydra reads a value with other letters than these of A to Z, or
# with one of = , ( ) ' " & ~ { [ $ # : or a space, as its own grammar; quoted it is what it is.

# A leading ~ is the home folder, also where the shell left it as it was.
home() {
  case $1 in
    '~' | '~/'*) printf '%s' "$HOME${1:1}" ;;
    *) printf '%s' "$1" ;;
  esac
}

# One path or name, as KEY="$(text "$VALUE")".
text() {
  local value char slashes= out= i plain='^[A-Za-z0-9_./-]*/[A-Za-z0-9_./-]*$'
  value=$(home "$1")
  if [[ $value =~ $plain ]]; then
    printf '%s' "$value"
    return
  fi
  for ((i = 0; i < ${#value}; i++)); do
    char=${value:i:1}
    case $char in
      \\)
        slashes+=$char
        continue
        ;;
      \') out+=$slashes$slashes\\ ;;
      '$')
        out+=$slashes
        # ${ would be one of OmegaConf's interpolations
        if [ "${value:i+1:1}" = '{' ]; then out+=$slashes\\; fi
        ;;
      *) out+=$slashes ;;
    esac
    out+=$char slashes=
  done
  printf "'%s'" "$out$slashes$slashes"
}

# One file, or a list in Hydra's way: [a.parquet,b.parquet]. A list with quotes in it stays as it is; null is no file.
files() {
  local name names out=
  if [ -e "$(home "$1")" ]; then
    text "$1"
  elif [[ $1 == '['*']' && $1 == *[\'\"]* ]] || [ "$1" = null ]; then
    printf '%s' "$1"
  elif [[ $1 == '['*']' ]]; then
    IFS=, read -ra names <<<"${1:1:${#1}-2}"
    for name in "${names[@]}"; do
      name="${name#"${name%%[![:space:]]*}"}"
      name="${name%"${name##*[![:space:]]}"}"
      out+=${out:+,}$(text "$name")
    done
    printf '[%s]' "$out"
  else
    text "$1"
  fi
}
