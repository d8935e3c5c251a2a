// Package schema checks JSON against the schemas in man: the parts of JSON Schema
// (draft 2020-12) that those use.
package schema

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
)

// Validate says where a text is not as the schema in a file has it.
func Validate(file string, text []byte) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var rules map[string]any
	if err := json.Unmarshal(data, &rules); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		return fmt.Errorf("read the text: %w", err)
	}
	return validate(rules, value, "")
}

func validate(rules map[string]any, value any, at string) error {
	known := []string{"type", "enum", "const", "minimum", "properties", "required", "additionalProperties", "items", "description", "title", "$schema"}
	for rule := range rules {
		if !slices.Contains(known, rule) {
			return fmt.Errorf("%s: the schema has %q, which is not understood here", at, rule)
		}
	}
	if want, ok := rules["const"]; ok && want != value {
		return fmt.Errorf("%s: %v is not %v", at, value, want)
	}
	if list, ok := rules["enum"].([]any); ok && !slices.Contains(list, value) {
		return fmt.Errorf("%s: %v is none of %v", at, value, list)
	}
	types, ok := rules["type"].([]any)
	if one, is := rules["type"].(string); is {
		types, ok = []any{one}, true
	}
	if ok && !slices.ContainsFunc(types, func(t any) bool { return is(value, t.(string)) }) {
		return fmt.Errorf("%s: %v is no %v", at, value, types)
	}
	if n, ok := value.(float64); ok && rules["minimum"] != nil && n < rules["minimum"].(float64) {
		return fmt.Errorf("%s: %v is less than %v", at, n, rules["minimum"])
	}
	if list, ok := value.([]any); ok && rules["items"] != nil {
		for i, v := range list {
			if err := validate(rules["items"].(map[string]any), v, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil
	}
	if required, ok := rules["required"].([]any); ok {
		for _, name := range required {
			if _, has := object[name.(string)]; !has {
				return fmt.Errorf("%s: there is no %v", at, name)
			}
		}
	}
	properties, _ := rules["properties"].(map[string]any)
	for name, v := range object {
		rules, ok := properties[name].(map[string]any)
		if !ok {
			return fmt.Errorf("%s: the schema has no %s", at, name)
		}
		if err := validate(rules, v, at+"."+name); err != nil {
			return err
		}
	}
	return nil
}

func is(value any, kind string) bool {
	switch v := value.(type) {
	case nil:
		return kind == "null"
	case bool:
		return kind == "boolean"
	case string:
		return kind == "string"
	case float64:
		return kind == "number" || kind == "integer" && v == float64(int64(v))
	case []any:
		return kind == "array"
	case map[string]any:
		return kind == "object"
	}
	return false
}
