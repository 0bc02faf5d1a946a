package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Run prints a script made from the command line's own model, so that it cannot name what does not exist.
func (c completionCommand) Run(con *console, parser *kong.Kong) error {
	words := completions(parser.Model.Node, nil)
	switch c.Shell {
	case "fish":
		return fishScript(con.out, words)
	case "zsh":
		if _, err := fmt.Fprint(con.out, "#compdef ward\nautoload -U +X bashcompinit && bashcompinit\n"); err != nil {
			return err
		}
	}
	return bashScript(con.out, words)
}

// completion is what may follow one command.
type completion struct {
	path  string // `policy explain`
	words []word
}

type word struct{ text, help string }

// completions lists, for each visible command, its sub-commands and flags.
func completions(n *kong.Node, path []string) []completion {
	c := completion{path: strings.Join(path, " ")}
	var below []completion
	for _, child := range n.Children {
		if child.Hidden {
			continue
		}
		c.words = append(c.words, word{child.Name, child.Help})
		below = append(below, completions(child, append(path[:len(path):len(path)], child.Name))...)
	}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			c.words = append(c.words, word{"--" + f.Name, f.Help})
		}
	}
	for _, p := range n.Positional {
		for _, v := range p.EnumSlice() {
			if v != "" { // what a positional without an enum has
				c.words = append(c.words, word{v, ""})
			}
		}
	}
	return append([]completion{c}, below...)
}

func bashScript(w io.Writer, all []completion) error {
	var b strings.Builder
	b.WriteString("_ward() {\n  local cur=\"${COMP_WORDS[COMP_CWORD]}\" path=\"\" w\n")
	b.WriteString("  for w in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do case $w in -*) ;; *) path=\"${path:+$path }$w\" ;; esac; done\n")
	b.WriteString("  case $path in\n")
	for _, c := range all {
		var words []string
		for _, w := range c.words {
			words = append(words, w.text)
		}
		fmt.Fprintf(&b, "    %q) COMPREPLY=($(compgen -W %q -- \"$cur\")) ;;\n", c.path, strings.Join(words, " "))
	}
	b.WriteString("  esac\n  [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- \"$cur\"))\n}\ncomplete -o filenames -F _ward ward\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func fishScript(w io.Writer, all []completion) error {
	var b strings.Builder
	for _, c := range all {
		condition := "__fish_use_subcommand"
		if c.path != "" {
			condition = "__fish_seen_subcommand_from " + c.path[strings.LastIndex(c.path, " ")+1:]
		}
		for _, wd := range c.words {
			flag := "-a " + wd.text
			if name, ok := strings.CutPrefix(wd.text, "--"); ok {
				flag = "-l " + name
			}
			fmt.Fprintf(&b, "complete -c ward -n '%s' %s -d '%s'\n", condition, flag, strings.ReplaceAll(wd.help, "'", `\'`))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
