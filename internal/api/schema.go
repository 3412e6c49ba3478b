package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v3"

	"github.com/cjmd/cjmd/internal/api/strict"
	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/suggest"
)

// bodyRule is what the description says about the body of one operation.
type bodyRule struct {
	schema   *jsonschema.Schema
	shape    *strict.Shape
	required bool
}

// spec is the description, read once.
type spec struct {
	doc   map[string]any
	rules map[string]*bodyRule // by operationId
	roles map[string]string    // by operationId: x-role
	ops   map[string]string    // by operationId: "METHOD /path"
	codes map[string][]string  // by operationId: x-problems
	query map[string][]string  // by operationId: names of query parameters
	// streams: by operationId: the body may be other than JSON, and is then read as it comes.
	streams map[string]bool
}

const specURL = "urn:cjmd:openapi"

// loadSpec reads the description and compiles the schema of every body.
func loadSpec(src []byte) (*spec, error) {
	var raw any
	if err := yaml.Unmarshal(src, &raw); err != nil {
		return nil, fmt.Errorf("cannot read the API description: %w", err)
	}
	// Through JSON, so that numbers and keys have the types the compiler expects.
	asJSON, err := json.Marshal(raw)
	if err != nil {
		return nil, fmt.Errorf("cannot read the API description: %w", err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		return nil, fmt.Errorf("cannot read the API description: %w", err)
	}
	doc, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("cannot read the API description: it is no object")
	}
	s := &spec{doc: doc, rules: map[string]*bodyRule{}, roles: map[string]string{}, ops: map[string]string{}, codes: map[string][]string{}, query: map[string][]string{}, streams: map[string]bool{}}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(specURL, doc); err != nil {
		return nil, fmt.Errorf("cannot use the API description: %w", err)
	}
	paths, _ := doc["paths"].(map[string]any)
	for path, item := range paths {
		for method, op := range asMap(item) {
			id, _ := asMap(op)["operationId"].(string)
			if id == "" {
				continue // parameters and the like
			}
			s.ops[id] = strings.ToUpper(method) + " " + path
			s.roles[id], _ = asMap(op)["x-role"].(string)
			s.query[id] = s.queryNames(asMap(item), asMap(op))
			list, _ := asMap(op)["x-problems"].([]any)
			for _, code := range list {
				s.codes[id] = append(s.codes[id], fmt.Sprint(code))
			}
			if err := s.addRule(c, id, asMap(op)); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// queryNames lists the query parameters of an operation and of its path.
func (s *spec) queryNames(holders ...map[string]any) []string {
	names := []string{}
	for _, h := range holders {
		list, _ := h["parameters"].([]any)
		for _, p := range list {
			param := asMap(p)
			if ref, ok := param["$ref"].(string); ok {
				param = asMap(dig(s.doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...))
			}
			if name, ok := param["name"].(string); ok && param["in"] == "query" {
				names = append(names, name)
			}
		}
	}
	return names
}

func (s *spec) addRule(c *jsonschema.Compiler, id string, op map[string]any) error {
	body := asMap(op["requestBody"])
	if body == nil {
		return nil
	}
	content := asMap(body["content"])
	s.streams[id] = content[multipartForm] != nil || content["application/octet-stream"] != nil
	if content["application/json"] == nil && s.streams[id] {
		return nil
	}
	ref, _ := dig(content, "application/json", "schema", "$ref").(string)
	if ref == "" {
		return fmt.Errorf("cannot use the API description: the body of %s is no reference to a component", id)
	}
	schema, err := c.Compile(specURL + ref)
	if err != nil {
		return fmt.Errorf("cannot compile the schema of %s: %w", id, err)
	}
	required, _ := body["required"].(bool)
	s.rules[id] = &bodyRule{schema: schema, shape: s.shapeOf(map[string]any{"$ref": ref}), required: required}
	return nil
}

// shapeOf finds the payload parts (x-payload) of a schema.
func (s *spec) shapeOf(schema map[string]any) *strict.Shape {
	if ref, ok := schema["$ref"].(string); ok {
		schema = asMap(dig(s.doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...))
	}
	if p, _ := schema["x-payload"].(bool); p {
		return &strict.Shape{Payload: true}
	}
	sh := &strict.Shape{}
	if props := asMap(schema["properties"]); props != nil {
		sh.Fields = make(map[string]*strict.Shape, len(props))
		for name, sub := range props {
			sh.Fields[name] = s.shapeOf(asMap(sub))
		}
	}
	if items := asMap(schema["items"]); items != nil {
		sh.Items = s.shapeOf(items)
	}
	return sh
}

func asMap(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func dig(v any, keys ...string) any {
	for _, k := range keys {
		v = asMap(v)[k]
	}
	return v
}

// fieldErrors turns what the schema found into pointers and sentences. Values
// that were submitted are never repeated: they may be secrets.
func (s *spec) fieldErrors(err error) []wire.FieldError {
	var ve *jsonschema.ValidationError
	if !errors.As(err, &ve) {
		return []wire.FieldError{{Pointer: "", Message: "is not what the API describes"}}
	}
	var out []wire.FieldError
	s.collect(ve, &out)
	slices.SortStableFunc(out, func(a, b wire.FieldError) int { return strings.Compare(a.Pointer, b.Pointer) })
	if len(out) > 20 { // a batch may be wrong a thousand times in the same way
		out = out[:20]
	}
	return out
}

func (s *spec) collect(ve *jsonschema.ValidationError, out *[]wire.FieldError) {
	if len(ve.Causes) > 0 {
		for _, c := range ve.Causes {
			s.collect(c, out)
		}
		return
	}
	at := ""
	for _, step := range ve.InstanceLocation {
		at += "/" + strict.EscapePointer(step)
	}
	switch k := ve.ErrorKind.(type) {
	case *kind.Required:
		for _, name := range k.Missing {
			*out = append(*out, wire.FieldError{Pointer: at + "/" + strict.EscapePointer(name), Message: "is missing"})
		}
	case *kind.AdditionalProperties:
		known := s.known(ve.SchemaURL)
		for _, name := range k.Properties {
			fe := wire.FieldError{Pointer: at + "/" + strict.EscapePointer(name), Message: "is no field that is known here"}
			if near := suggest.Nearest(name, known); near != "" {
				fe.Suggestion = near
				fe.Message += fmt.Sprintf("; did you mean %q?", near)
			}
			*out = append(*out, fe)
		}
	default:
		*out = append(*out, wire.FieldError{Pointer: at, Message: sentence(ve.ErrorKind)})
	}
}

// known lists the fields of the object schema at url.
func (s *spec) known(url string) []string {
	_, frag, _ := strings.Cut(url, "#/")
	props := asMap(dig(s.doc, append(strings.Split(frag, "/"), "properties")...))
	names := make([]string, 0, len(props))
	for n := range props {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// sentence says what a value should be.
func sentence(k jsonschema.ErrorKind) string {
	switch k := k.(type) {
	case *kind.Type:
		return "must be " + article(strings.Join(k.Want, " or ")) + ", not " + article(k.Got)
	case *kind.Enum:
		want := make([]string, 0, len(k.Want))
		for _, w := range k.Want {
			want = append(want, fmt.Sprint(w))
		}
		return "must be one of " + strings.Join(want, ", ")
	case *kind.Pattern:
		return "must match " + k.Want
	case *kind.Minimum:
		return "must be at least " + k.Want.RatString()
	case *kind.Maximum:
		return "must be at most " + k.Want.RatString()
	case *kind.MinLength:
		return fmt.Sprintf("must have at least %d characters", k.Want)
	case *kind.MaxLength:
		return fmt.Sprintf("must have at most %d characters, not %d", k.Want, k.Got)
	case *kind.MinItems:
		return fmt.Sprintf("must have at least %d items", k.Want)
	case *kind.MaxItems:
		return fmt.Sprintf("must have at most %d items, not %d", k.Want, k.Got)
	case *kind.MinProperties:
		return fmt.Sprintf("must have at least %d fields", k.Want)
	case *kind.MaxProperties:
		return fmt.Sprintf("must have at most %d fields, not %d", k.Want, k.Got)
	default:
		return "is not what the API describes"
	}
}

func article(kind string) string {
	switch kind {
	case "null":
		return "null"
	case "array", "object", "integer":
		return "an " + kind
	default:
		return "a " + kind
	}
}
