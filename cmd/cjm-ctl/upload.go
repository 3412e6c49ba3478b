package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"os"
	"path/filepath"
	"strings"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

// upload is one --file: a file that goes with the job.
type upload struct {
	key  string // keyword argument that becomes its path; "" is a positional one
	path string
	name string // in the job's directory
}

// uploads reads the values of --file and puts a reference to each file among the
// arguments.
func (s *submitFlags) uploads(out *jobArgs) ([]upload, error) {
	if len(s.files) > 0 && s.id != "" {
		return nil, usagef("--file goes with --key, not with --id")
	}
	var list []upload
	taken := map[string]string{}
	for _, word := range s.files {
		u := upload{path: word}
		if m := keyedArg.FindStringSubmatch(word); m != nil && m[1] != "" && m[2] == "=" {
			u.key, u.path = m[1], word[len(m[0]):]
		}
		u.name = filepath.Base(u.path)
		st, err := os.Stat(u.path)
		switch {
		case err != nil:
			return nil, usagef("cannot send %q: %v", u.path, errors.Unwrap(err))
		case !st.Mode().IsRegular():
			return nil, usagef("cannot send %q: it is no regular file", u.path)
		case taken[u.name] != "":
			return nil, usagef("cannot send both %q and %q: they have the same name", taken[u.name], u.path)
		}
		taken[u.name] = u.path
		ref := map[string]any{"$file": u.name}
		if u.key == "" {
			out.Args = append(out.Args, ref)
		} else if _, twice := out.Kwargs[u.key]; twice {
			return nil, usagef("argument %q is given twice", u.key)
		} else {
			out.Kwargs[u.key] = ref
		}
		list = append(list, u)
	}
	return list, nil
}

// sendWith submits a job together with its files, as they are read.
func (s *submitFlags) sendWith(ctx context.Context, c *client.API, req wire.JobRequest, wait wire.Duration, files []upload) (reply[wire.Job], error) {
	body, err := json.Marshal(req)
	if err != nil {
		return reply[wire.Job]{}, fmt.Errorf("cannot write the job: %w", err)
	}
	r, w := io.Pipe()
	form := multipart.NewWriter(w)
	written := make(chan error, 1)
	go func() {
		err := writeForm(form, body, files)
		w.CloseWithError(err) // nil is the end of the body
		written <- err
	}()
	job, err := read[wire.Job](c.SubmitJobWithBody(ctx, &wire.SubmitJobParams{Wait: optional(wait), IdempotencyKey: optional(s.key)},
		form.FormDataContentType(), r))
	_ = r.Close() // whoever still writes has nobody who reads
	var local *os.PathError
	if writeErr := <-written; errors.As(writeErr, &local) {
		return job, fmt.Errorf("cannot send %w", local)
	}
	return job, err
}

func writeForm(form *multipart.Writer, job []byte, files []upload) error {
	part, err := form.CreateFormField("job")
	if err != nil {
		return err
	}
	if _, err := io.Copy(part, bytes.NewReader(job)); err != nil {
		return err
	}
	for _, u := range files {
		if err := writeFile(form, u); err != nil {
			return err
		}
	}
	return form.Close()
}

func writeFile(form *multipart.Writer, u upload) error {
	f, err := os.Open(u.path)
	if err != nil {
		return err
	}
	defer f.Close()
	part, err := form.CreateFormFile("file", u.name)
	if err != nil {
		return err
	}
	_, err = io.Copy(part, f)
	return err
}

// localName is where a file of a job belongs below a directory of ours.
func localName(name string) (string, error) {
	local := filepath.FromSlash(name)
	if !filepath.IsLocal(local) || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("cannot write a file called %q here", name)
	}
	return local, nil
}
