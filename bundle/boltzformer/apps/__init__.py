"""Ways in from outside: the commands and services that put the other rooms together."""
