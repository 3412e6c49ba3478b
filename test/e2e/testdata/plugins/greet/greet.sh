#!/bin/sh
# plugins/greet/greet.sh
name=$1; shift; times=1
if [ "$1" = --times ]; then times=$2; shift 2; fi
[ -n "$name" ] || { echo "whom shall I greet?" >&2; exit 2; }
i=0
while [ $i -lt "$times" ]; do
  i=$((i + 1))
  echo "CJM_PROGRESS $i/$times greeting $name" >&2
  echo "hello $name$1"
done
