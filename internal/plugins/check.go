package plugins

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cjmd/cjmd/internal/suggest"
)

// CheckConfig holds config against a manifest's schema, as leniently as the
// schemas in the wild need: unknown keys, enum, range, length and pattern are
// errors, a value of another type is a warning unless the manifest is strict.
// A whole JSON Schema validator would refuse configurations that plugins take.
// Defaults are expected to be filled in (MergeDefaults). The error is about
// text that is no JSON object; findings are issues.
func CheckConfig(man Manifest, config json.RawMessage) ([]Issue, error) {
	values, err := configObject(config)
	if err != nil {
		return nil, err
	}
	schema := schemaObject(man.Schema)
	if schema == nil {
		return nil, nil
	}
	c := &configChecker{strict: man.Strict}
	c.object(schema, values, "", "")
	return c.issues, nil
}

// MergeDefaults fills what config does not say from the schema's defaults
// (top level, as the plugins expect them). nil and {} give the defaults alone.
func MergeDefaults(man Manifest, config json.RawMessage) (json.RawMessage, error) {
	values, err := configObject(config)
	if err != nil {
		return nil, err
	}
	for name, p := range properties(schemaObject(man.Schema)) {
		prop, _ := p.(map[string]any)
		def, ok := prop["default"]
		if _, given := values[name]; ok && !given {
			values[name] = def
		}
	}
	out, err := json.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("cannot write the configuration: %w", err)
	}
	return out, nil
}

// configObject reads a configuration; nothing at all and null are {}.
func configObject(config json.RawMessage) (map[string]any, error) {
	if len(config) == 0 {
		return map[string]any{}, nil
	}
	v, err := decodeJSON(config)
	if err != nil {
		return nil, fmt.Errorf("the configuration %w", err)
	}
	switch v := v.(type) {
	case nil:
		return map[string]any{}, nil
	case map[string]any:
		return v, nil
	default:
		return nil, errors.New("the configuration must be an object with keys")
	}
}

func schemaObject(schema json.RawMessage) map[string]any {
	if len(schema) == 0 {
		return nil
	}
	v, err := decodeJSON(schema)
	if err != nil {
		return nil // cannot be: it was written by ParseManifest
	}
	m, _ := v.(map[string]any)
	return m
}

func properties(schema map[string]any) map[string]any {
	p, _ := schema["properties"].(map[string]any)
	return p
}

type configChecker struct {
	strict bool
	issues []Issue
}

func (c *configChecker) add(pointer string, warning bool, format string, args ...any) {
	c.issues = append(c.issues, Issue{Pointer: pointer, Message: fmt.Sprintf(format, args...), Warning: warning})
}

// addRule is add for a message that repeats the value; rule is the one without.
func (c *configChecker) addRule(pointer, rule, format string, args ...any) {
	c.add(pointer, false, format, args...)
	c.issues[len(c.issues)-1].Rule = rule
}

// object checks the members of one object. name is how messages call it
// ("" at the top, "decoder" below).
func (c *configChecker) object(schema, values map[string]any, pointer, name string) {
	props, has := schema["properties"].(map[string]any)
	additional := schema["additionalProperties"]
	for _, key := range slices.Sorted(maps.Keys(values)) {
		at, field := pointer+"/"+escapePointer(key), joinName(name, key)
		if prop, known := props[key]; known {
			if p, ok := prop.(map[string]any); ok { // true and other non-schemas say nothing
				c.value(p, values[key], at, field)
			}
			continue
		}
		switch extra := additional.(type) {
		case map[string]any:
			c.value(extra, values[key], at, field)
			continue
		case bool:
			if extra {
				continue
			}
			has = true // false counts without properties, too
		}
		if has {
			c.add(at, false, "%s: unknown key%s", field, suggest.DidYouMean(key, slices.Sorted(maps.Keys(props))))
		}
	}
	required, _ := schema["required"].([]any)
	for _, r := range required {
		key, _ := r.(string)
		if _, given := values[key]; !given && key != "" {
			c.add(pointer+"/"+escapePointer(key), false, "%s: is required", joinName(name, key))
		}
	}
}

// value checks one value in the order of the Python system: enum for
// everything, range for numbers, length and pattern for text; of these, the
// first that fails is told.
func (c *configChecker) value(schema map[string]any, v any, pointer, field string) {
	if enum, ok := schema["enum"].([]any); ok && !slices.ContainsFunc(enum, func(e any) bool { return pyEqual(e, v) }) {
		c.addRule(pointer, fmt.Sprintf("%s: must be one of %s", field, pyRepr(enum)), "%s: %s is not one of %s", field, pyRepr(v), pyRepr(enum))
		return
	}
	c.kind(schema, v, pointer, field)
	switch v := v.(type) {
	case json.Number:
		c.number(schema, v, pointer, field)
	case string:
		c.text(schema, v, pointer, field)
	case []any:
		if items, ok := schema["items"].(map[string]any); ok {
			for i, item := range v {
				c.value(items, item, fmt.Sprintf("%s/%d", pointer, i), fmt.Sprintf("%s[%d]", field, i))
			}
		}
	case map[string]any:
		c.object(schema, v, pointer, field)
	}
}

// kind is about the type. A default that contradicts its own type (a dict
// under "string" is common) is what the author meant.
func (c *configChecker) kind(schema map[string]any, v any, pointer, field string) {
	var allowed []string
	switch t := schema["type"].(type) {
	case string:
		allowed = []string{t}
	case []any:
		for _, x := range t {
			if s, ok := x.(string); ok {
				allowed = append(allowed, s)
			}
		}
	}
	have := kindOf(v)
	if len(allowed) == 0 || slices.Contains(allowed, have) || (have == "integer" && slices.Contains(allowed, "number")) {
		return
	}
	if def, ok := schema["default"]; ok && pyEqual(def, v) {
		return
	}
	c.add(pointer, !c.strict, "%s: expected %s, got %s", field, strings.Join(allowed, " or "), have)
}

func (c *configChecker) number(schema map[string]any, n json.Number, pointer, field string) {
	x, ok := number(n)
	if !ok {
		return
	}
	if limit, ok := number(schema["minimum"]); ok && x < limit {
		least := pyRepr(schema["minimum"])
		c.addRule(pointer, fmt.Sprintf("%s: must be at least %s", field, least), "%s: %s is less than minimum %s", field, pyRepr(n), least)
	} else if limit, ok := number(schema["maximum"]); ok && x > limit {
		most := pyRepr(schema["maximum"])
		c.addRule(pointer, fmt.Sprintf("%s: must be at most %s", field, most), "%s: %s is greater than maximum %s", field, pyRepr(n), most)
	}
}

func (c *configChecker) text(schema map[string]any, s, pointer, field string) {
	length := utf8.RuneCountInString(s)
	if limit, ok := number(schema["minLength"]); ok && float64(length) < limit {
		c.add(pointer, false, "%s: string length %d is less than minimum %s", field, length, pyRepr(schema["minLength"]))
		return
	}
	if limit, ok := number(schema["maxLength"]); ok && float64(length) > limit {
		c.add(pointer, false, "%s: string length %d is greater than maximum %s", field, length, pyRepr(schema["maxLength"]))
		return
	}
	pattern, ok := schema["pattern"].(string)
	if !ok {
		return
	}
	re, err := compilePython(pattern)
	if err != nil {
		c.add(pointer, true, "%s: pattern %s cannot be checked here: %v", field, pyRepr(pattern), err)
		return
	}
	if !re.MatchString(s) {
		c.addRule(pointer, fmt.Sprintf("%s: must match the pattern %s", field, pyRepr(pattern)), "%s: %s does not match pattern %s", field, pyRepr(s), pyRepr(pattern))
	}
}

// schemaWarnings tells what of a schema cannot be checked, once, at discovery.
func schemaWarnings(schema map[string]any) []string {
	if p, ok := schema["properties"]; ok {
		if _, isObject := p.(map[string]any); !isObject {
			return []string{"config_schema.properties is no object: configurations are accepted unchecked"}
		}
	}
	return schemaFlaws(nil, schema, "")
}

// ruleForms is what the value of each rule that is checked must be.
var ruleForms = []struct {
	rule, form string
	fits       func(any) bool
}{
	{"type", "a type of JSON or a list of them", isType},
	{"enum", "a list", isA[[]any]},
	{"required", "a list", isA[[]any]},
	{"properties", "an object", isA[map[string]any]},
	{"minimum", "a number", isA[json.Number]},
	{"maximum", "a number", isA[json.Number]},
	{"minLength", "a number", isA[json.Number]},
	{"maxLength", "a number", isA[json.Number]},
	{"pattern", "text", isA[string]},
}

func isA[T any](v any) bool {
	_, ok := v.(T)
	return ok
}

var jsonTypes = []string{"null", "boolean", "integer", "number", "string", "array", "object"}

func isType(v any) bool {
	if list, ok := v.([]any); ok {
		return len(list) > 0 && !slices.ContainsFunc(list, func(v any) bool { return !isType(v) })
	}
	name, ok := v.(string)
	return ok && slices.Contains(jsonTypes, name)
}

// schemaFlaws appends what is wrong with a schema and those of its members.
func schemaFlaws(out []string, schema map[string]any, name string) []string {
	where := "config_schema"
	if name != "" {
		where += ": " + name
	}
	for _, r := range ruleForms {
		if v, ok := schema[r.rule]; ok && v != nil && !r.fits(v) {
			out = append(out, fmt.Sprintf("%s: %s is not %s, so it is not checked", where, r.rule, r.form))
		}
	}
	if pattern, ok := schema["pattern"].(string); ok {
		if _, err := compilePython(pattern); err != nil {
			out = append(out, fmt.Sprintf("config_schema: the pattern of %s cannot be checked: %v", name, err))
		}
	}
	props := properties(schema)
	for _, key := range slices.Sorted(maps.Keys(props)) {
		switch prop := props[key].(type) {
		case map[string]any:
			out = schemaFlaws(out, prop, joinName(name, key))
		case bool: // a schema that takes everything, or nothing
		default:
			out = append(out, fmt.Sprintf("config_schema: %s is no schema, so it is not checked", joinName(name, key)))
		}
	}
	if items, ok := schema["items"].(map[string]any); ok {
		out = schemaFlaws(out, items, name+"[]")
	}
	return out
}

func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case []any:
		return "array"
	case json.Number:
		if x, ok := number(v); ok && x == math.Trunc(x) {
			return "integer"
		}
		return "number"
	default:
		return "object"
	}
}

func number(v any) (float64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	x, err := strconv.ParseFloat(string(n), 64)
	return x, err == nil
}

func joinName(outer, key string) string {
	if outer == "" {
		return key
	}
	return outer + "." + key
}

func escapePointer(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}
