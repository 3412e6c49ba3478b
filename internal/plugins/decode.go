package plugins

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	maxManifestBytes = 4 << 20
	maxDepth         = 64
)

// decodeTree reads JSON or YAML (by the file's ending) into maps, slices,
// strings, json.Number, bool and nil. Duplicate keys, trailing data and
// nesting beyond maxDepth are errors.
func decodeTree(path string, content []byte) (any, error) {
	if len(content) > maxManifestBytes {
		return nil, fmt.Errorf("is %d bytes long; the limit is %d", len(content), maxManifestBytes)
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".yaml", ".yml":
		return decodeYAML(content)
	default:
		return decodeJSON(content)
	}
}

// decodeJSON is encoding/json with what it lets pass refused.
func decodeJSON(content []byte) (any, error) {
	content = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf")) // editors on Windows
	d := json.NewDecoder(bytes.NewReader(content))
	d.UseNumber()
	v, err := jsonValue(d, "", 0)
	if err == nil {
		if _, terr := d.Token(); terr != io.EOF {
			err = errors.New("has text after its end; keep one object")
		}
	}
	if err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line := 1 + bytes.Count(content[:min(int(syntax.Offset), len(content))], []byte("\n"))
			return nil, fmt.Errorf("is no JSON: line %d: %w", line, err)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("is no JSON: it ends too early")
		}
		return nil, err
	}
	return v, nil
}

func jsonValue(d *json.Decoder, at string, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("is nested deeper than %d levels", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		m := map[string]any{}
		for d.More() {
			kt, err := d.Token()
			if err != nil {
				return nil, err
			}
			k, _ := kt.(string) // the decoder accepts nothing else here
			if _, dup := m[k]; dup {
				return nil, fmt.Errorf("has the key %q twice; keep one", strings.TrimPrefix(at+"."+k, "."))
			}
			if m[k], err = jsonValue(d, at+"."+k, depth+1); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return m, err
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := jsonValue(d, at, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	default:
		return t, nil
	}
}

func decodeYAML(content []byte) (any, error) {
	d := yaml.NewDecoder(bytes.NewReader(content))
	var v any // decoding into any refuses duplicate keys and runaway aliases
	if err := d.Decode(&v); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("is empty")
		}
		return nil, fmt.Errorf("is no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("has more than one document; keep one")
	}
	return fromYAML(v, 0)
}

// fromYAML turns what the YAML decoder made into what decodeJSON makes.
func fromYAML(v any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("is nested deeper than %d levels", maxDepth)
	}
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			y, err := fromYAML(x, depth+1)
			if err != nil {
				return nil, err
			}
			v[k] = y
		}
		return v, nil
	case map[any]any:
		return nil, errors.New("has a key that is no text; put it in quotes")
	case []any:
		for i, x := range v {
			y, err := fromYAML(x, depth+1)
			if err != nil {
				return nil, err
			}
			v[i] = y
		}
		return v, nil
	case int, int64, uint64:
		return json.Number(fmt.Sprint(v)), nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, errors.New("holds .nan or .inf, which JSON cannot")
		}
		b, err := json.Marshal(v)
		return json.Number(b), err
	case time.Time:
		return v.Format(time.RFC3339Nano), nil
	default: // string, bool, nil
		return v, nil
	}
}
