package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cjmd/cjmd/internal/jobs/jobfiles"
)

// Arguments may hold references, which are filled in when the job starts:
//
//	{"$result": "<job id>", "path": "/a/0"}   a job's result, or what the JSON Pointer finds in it
//	{"$file": "in.wav"}                       the absolute path of a file of the job itself
//	{"$file": "out.wav", "job": "<job id>"}   the same of another job
//	{"$literal": <any>}                       <any> as it stands, whatever is in it
//
// An object with one of these keys and others besides is refused: who means it
// as data wraps it into $literal. Other jobs must be in depends_on.

// maxResolved bounds the arguments after references were filled in.
const maxResolved = 64 << 20

// ref is one of them. Exactly one of result, file and literal is set.
type ref struct {
	result  ID
	path    string
	file    string
	job     ID // of the file; "" is the job's own
	literal json.RawMessage
}

const refForms = `a reference is {"$result": "<job id>", "path": "/json/pointer"}, {"$file": "<name>", "job": "<job id>"} or {"$literal": <any>}`

// RefError says that a reference cannot be followed, ever.
type RefError struct{ message string }

func (e *RefError) Error() string { return e.message }

// replaceRefs puts what fn returns in the place of each reference; everything
// else stays as it was written. A literal is replaced here.
func replaceRefs(raw json.RawMessage, fn func(ref) (json.RawMessage, error)) (json.RawMessage, error) {
	if !bytes.Contains(raw, []byte(`"$`)) && !bytes.Contains(raw, []byte(`\u0024`)) {
		return raw, nil
	}
	s := splicer{raw: raw, dec: json.NewDecoder(bytes.NewReader(raw)), fn: fn}
	s.dec.UseNumber()
	if err := s.value(); err != nil {
		return nil, err
	}
	if len(s.edits) == 0 {
		return raw, nil
	}
	out, at := make([]byte, 0, len(raw)+s.grown), 0
	for _, e := range s.edits {
		out = append(append(out, raw[at:e.from]...), e.with...)
		at = e.to
	}
	return append(out, raw[at:]...), nil
}

type edit struct {
	from, to int
	with     []byte
}

// splicer walks a document and notes what is to be replaced where.
type splicer struct {
	raw   []byte
	dec   *json.Decoder
	fn    func(ref) (json.RawMessage, error)
	edits []edit
	grown int
}

func (s *splicer) value() error {
	tok, err := s.dec.Token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('['):
		for s.dec.More() {
			if err := s.value(); err != nil {
				return err
			}
		}
		_, err = s.dec.Token()
	case json.Delim('{'):
		err = s.object(int(s.dec.InputOffset()) - 1)
	}
	return err
}

// object walks one whose brace stands at from.
func (s *splicer) object(from int) error {
	isRef := false
	for s.dec.More() {
		key, err := s.dec.Token()
		if err != nil {
			return err
		}
		switch key {
		case "$literal": // what is in it is none of ours
			isRef = true
			var skip json.RawMessage
			err = s.dec.Decode(&skip)
		case "$result", "$file":
			isRef = true
			fallthrough
		default:
			err = s.value()
		}
		if err != nil {
			return err
		}
	}
	if _, err := s.dec.Token(); err != nil || !isRef {
		return err
	}
	to := int(s.dec.InputOffset())
	r, err := parseRef(s.raw[from:to])
	if err != nil {
		return err
	}
	with := r.literal
	if with == nil {
		if with, err = s.fn(r); err != nil {
			return err
		}
	}
	if s.grown += len(with); s.grown > maxResolved {
		return &RefError{fmt.Sprintf("arguments with results filled in are larger than %d MiB", maxResolved>>20)}
	}
	s.edits = append(s.edits, edit{from, to, with})
	return nil
}

func parseRef(raw []byte) (ref, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return ref{}, err
	}
	var r ref
	ok := true
	text := func(key string) string {
		v, has := m[key]
		delete(m, key)
		var s string
		ok = ok && (!has || json.Unmarshal(v, &s) == nil && string(v) != "null")
		return s
	}
	switch {
	case m["$literal"] != nil:
		r.literal = m["$literal"]
		delete(m, "$literal")
	case m["$result"] != nil:
		r.result, r.path = ID(text("$result")), text("path")
		ok = ok && r.result != "" && validPointer(r.path)
	default:
		_, other := m["job"]
		r.file, r.job = text("$file"), ID(text("job"))
		ok = ok && (r.job != "" || !other)
	}
	if !ok || len(m) > 0 {
		return ref{}, &RefError{refForms}
	}
	return r, nil
}

func validPointer(p string) bool {
	if p != "" && p[0] != '/' {
		return false
	}
	for i := range len(p) {
		if p[i] == '~' && (i+1 == len(p) || p[i+1] != '0' && p[i+1] != '1') {
			return false
		}
	}
	return true
}

// forRefs calls fn for each reference in the arguments of a job.
func forRefs(sp Spec, fn func(field string, r ref) error) error {
	for _, a := range []struct {
		field string
		raw   json.RawMessage
	}{{"args", sp.Args}, {"kwargs", sp.Kwargs}} {
		_, err := replaceRefs(a.raw, func(r ref) (json.RawMessage, error) { return json.RawMessage("null"), fn(a.field, r) })
		var bad *RefError
		if errors.As(err, &bad) {
			return &InvalidError{Field: a.field, Message: bad.message}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkRefs checks what can be told from the submission alone.
func checkRefs(sp Spec) error {
	return forRefs(sp, func(field string, r ref) error {
		what, other := "the result of", r.result
		if r.result == "" {
			what, other = "a file of", r.job
			if err := jobfiles.CheckName(r.file); err != nil {
				return &InvalidError{Field: field, Message: `names a "$file", but ` + err.Error()}
			}
		}
		if other != "" && !slices.Contains(sp.DependsOn, other) {
			return &InvalidError{Field: field, Message: fmt.Sprintf("refers to %s %s, which is not in depends_on", what, other)}
		}
		return nil
	})
}

// Resolve returns the job with the references in its arguments filled in. An
// error that is a *RefError will be the same next time.
func (r *Run) Resolve(ctx context.Context) (Job, error) {
	j := r.Job()
	type place struct {
		id   ID
		path string
	}
	found := map[place]json.RawMessage{}
	fill := func(x ref) (part json.RawMessage, err error) {
		if x.result == "" {
			return r.q.filePath(j.ID, x)
		}
		at, whole := place{x.result, x.path}, place{id: x.result}
		if part = found[at]; part != nil {
			return part, nil
		}
		if found[whole] == nil {
			if found[whole], err = r.q.resultJSON(ctx, x.result); err != nil {
				return nil, err
			}
		}
		if found[at], err = follow(found[whole], x.path); err != nil {
			return nil, &RefError{fmt.Sprintf("result of job %s: %v", x.result, err)}
		}
		return found[at], nil
	}
	var err error
	if j.Spec.Args, err = replaceRefs(j.Spec.Args, fill); err != nil {
		return Job{}, err
	}
	j.Spec.Kwargs, err = replaceRefs(j.Spec.Kwargs, fill)
	return j, err
}

// filePath is the absolute path of a file that a reference names.
func (q *Queue) filePath(own ID, x ref) (json.RawMessage, error) {
	id, whose := own, "the job"
	if x.job != "" {
		id, whose = x.job, "job "+string(x.job)
	}
	if _, err := q.files.Stat(id.FileName(), x.file); err != nil {
		if errors.Is(err, jobfiles.ErrNotFound) {
			return nil, &RefError{fmt.Sprintf("%s has no file %q", whose, x.file)}
		}
		return nil, err
	}
	return json.Marshal(filepath.Join(q.files.Path(id.FileName()), filepath.FromSlash(x.file)))
}

// resultJSON reads a result that is to become an argument.
func (q *Queue) resultJSON(ctx context.Context, id ID) (json.RawMessage, error) {
	body, info, err := q.Result(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil, &RefError{fmt.Sprintf("job %s has no result", id)}
	}
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if info.Size > maxResolved {
		return nil, &RefError{fmt.Sprintf("the result of job %s is too large to be an argument; pass it as a file", id)}
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("cannot read the result of job %s: %w", id, err)
	}
	if len(bytes.TrimSpace(raw)) == 0 { // it returned nothing
		return json.RawMessage("null"), nil
	}
	if !json.Valid(raw) {
		return nil, &RefError{fmt.Sprintf("the result of job %s is not JSON", id)}
	}
	return raw, nil
}

var unescape = strings.NewReplacer("~1", "/", "~0", "~")

// follow follows a JSON Pointer (RFC 6901) that validPointer accepts.
func follow(v json.RawMessage, path string) (json.RawMessage, error) {
	if path == "" {
		return v, nil
	}
	for _, tok := range strings.Split(path[1:], "/") {
		tok = unescape.Replace(tok)
		var m map[string]json.RawMessage
		var list []json.RawMessage
		switch v = bytes.TrimSpace(v); {
		case v[0] == '{' && json.Unmarshal(v, &m) == nil:
			next, ok := m[tok]
			if !ok {
				return nil, fmt.Errorf("path %s: no member %q", path, tok)
			}
			v = next
		case v[0] == '[' && json.Unmarshal(v, &list) == nil:
			i, err := strconv.Atoi(tok)
			if err != nil || i < 0 || i >= len(list) || strconv.Itoa(i) != tok {
				return nil, fmt.Errorf("path %s: no element %q", path, tok)
			}
			v = list[i]
		default:
			return nil, fmt.Errorf("path %s: nothing below %q", path, tok)
		}
	}
	return v, nil
}
