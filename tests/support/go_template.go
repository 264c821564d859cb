// Executes a template of Go's for each conversation of standard input, as ollama does.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	parsed := template.Must(template.ParseFiles(os.Args[1]))
	var conversations [][]message
	if err := json.NewDecoder(os.Stdin).Decode(&conversations); err != nil {
		panic(err)
	}
	written := []string{}
	for _, conversation := range conversations {
		var text strings.Builder
		if err := parsed.Execute(&text, map[string]any{"Messages": conversation}); err != nil {
			panic(err)
		}
		written = append(written, text.String())
	}
	if err := json.NewEncoder(os.Stdout).Encode(written); err != nil {
		panic(err)
	}
}
