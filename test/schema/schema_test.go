package schema

import (
	"os"
	"testing"
)

func TestValidate(t *testing.T) {
	file := func(text string) string {
		path := t.TempDir() + "/schema.json"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const schema = `{"type": "object", "required": ["a"], "properties": {
		"a": {"type": "integer", "minimum": 1}, "b": {"type": "array", "items": {"enum": ["x", "y"]}},
		"c": {"type": ["string", "null"]}, "d": {"const": true}}}`
	for text, good := range map[string]bool{
		`{"a": 1, "b": ["x", "y"], "c": null, "d": true}`: true,
		`{"a": 1, "c": ""}`:      true,
		`{"a": 0}`:               false,
		`{"a": 1.5}`:             false,
		`{}`:                     false,
		`[]`:                     false,
		`{"a": 1, "b": ["z"]}`:   false,
		`{"a": 1, "c": 1}`:       false,
		`{"a": 1, "d": false}`:   false,
		`{"a": 1, "other": "x"}`: false,
	} {
		if err := Validate(file(schema), []byte(text)); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
	if Validate(file(`{"pattern": "x"}`), []byte(`"x"`)) == nil {
		t.Error("a rule that is not understood is passed over")
	}
}
