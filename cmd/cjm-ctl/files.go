package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

const filesHelp = `Shows and moves the files of a job: what was uploaded for it, and what it left.

  cjm-ctl files JOB                     list them
  cjm-ctl files JOB get                 fetch all of them into this directory
  cjm-ctl files JOB get out.wav -o -    print one
  cjm-ctl files JOB put notes.txt       upload to a job that has not started
  cjm-ctl files JOB rm out.wav          remove one, of a job that does not run

A job that is to wait for its files is submitted with --hold and started with
cjm-ctl release; cjm-ctl run and submit send files along with --file.`

func newFiles(a *app) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "files JOB [ls | get [NAME…] | put FILE… | rm NAME…]", GroupID: groupJobs, Args: count(1, -1),
		Short: "Files of a job: list, fetch, upload, remove", Long: filesHelp,
		ValidArgsFunction: a.complete(1, true, jobWords()),
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			f := jobFiles{a: a, c: c, job: args[0]}
			verb, names := "ls", []string(nil)
			if len(args) > 1 {
				verb, names = args[1], args[2:]
			}
			switch {
			case to != "" && verb != "get":
				return usagef("--output goes with get")
			case verb == "ls" && len(names) == 0:
				return f.list(ctx)
			case verb == "get":
				return f.get(ctx, names, to)
			case verb == "put" && len(names) > 0:
				return f.put(ctx, names)
			case verb == "rm" && len(names) > 0:
				return f.remove(ctx, names)
			}
			return usagef("cjm-ctl files JOB takes ls, get [NAME…], put FILE… or rm NAME…")
		}),
	}
	cmd.Flags().StringVarP(&to, "output", "o", "", "with get: write to this file, directory (ends with /, or exists) or - for stdout")
	return cmd
}

// jobFiles is the files of one job.
type jobFiles struct {
	a   *app
	c   *client.API
	job string
}

func (f jobFiles) read(ctx context.Context, checksums bool) (reply[wire.JobFiles], error) {
	return read[wire.JobFiles](f.c.ListJobFiles(ctx, f.job, &wire.ListJobFilesParams{Checksums: &checksums}))
}

func (f jobFiles) list(ctx context.Context) error {
	list, err := f.read(ctx, true)
	if err != nil {
		return err
	}
	if f.a.json {
		return f.a.printJSON(list.raw)
	}
	if v := list.value; v.Unlisted > 0 {
		f.a.say("%d more in the job's directory cannot be fetched (links and the like)", v.Unlisted)
	}
	if list.value.More {
		f.a.say("there are more files than are listed")
	}
	if len(list.value.Files) == 0 {
		f.a.say("job %s has no files", f.job)
		return nil
	}
	t := &table{cols: []column{{title: "FILE", flex: true, min: 20}, {title: "SIZE", right: true}, {title: "CHANGED"}, {title: "SHA256"}}}
	for _, x := range list.value.Files {
		t.row(harmless(x.Name, false), size(x.Size), f.a.moment(x.ModifiedAt), x.Sha256[:min(12, len(x.Sha256))])
	}
	return f.a.printTable(t)
}

// get fetches files: all, or those that are named.
func (f jobFiles) get(ctx context.Context, names []string, to string) error {
	list, err := f.read(ctx, false)
	if err != nil {
		return err
	}
	chosen := list.value.Files
	if len(names) > 0 {
		chosen = nil
		for _, name := range names {
			name = strings.TrimPrefix(name, list.value.Dir+"/") // as a plugin returned it
			i := slices.IndexFunc(list.value.Files, func(x wire.JobFile) bool { return x.Name == name })
			if i < 0 {
				return &hintError{fmt.Errorf("job %s has no file %q", f.job, name), "cjm-ctl files " + f.job + " lists what it has"}
			}
			chosen = append(chosen, list.value.Files[i])
		}
	}
	if len(chosen) == 0 {
		return &hintError{fmt.Errorf("job %s has no files", f.job), "a job that has not ended may still make some"}
	}
	if to == "-" {
		return f.print(ctx, chosen)
	}
	dir, name := destination(to)
	if name != "" && len(chosen) > 1 {
		return usagef("cannot write %d files to %s: name a directory", len(chosen), to)
	}
	for _, x := range chosen {
		if err := f.save(ctx, x, dir, name); err != nil {
			return err
		}
	}
	return nil
}

// destination splits --output into a directory and, where it is none, a file's name.
func destination(to string) (dir, name string) {
	st, err := os.Stat(to)
	switch {
	case to == "":
		return ".", ""
	case strings.HasSuffix(to, "/") || err == nil && st.IsDir():
		return to, ""
	}
	return filepath.Split(to)
}

func (f jobFiles) print(ctx context.Context, chosen []wire.JobFile) error {
	for _, x := range chosen {
		resp, err := checked(f.c.GetJobFile(ctx, f.job, x.Name))
		if err != nil {
			return err
		}
		_, err = io.Copy(f.a.out.w, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return broken(err)
		}
	}
	return nil
}

// save fetches one file to name (or its own) below dir. A file that was there is
// replaced when all of the new one has come; links do not lead out of dir.
func (f jobFiles) save(ctx context.Context, x wire.JobFile, dir, name string) error {
	if name == "" {
		var err error
		if name, err = localName(x.Name); err != nil {
			return err
		}
	}
	if dir == "" {
		dir = "."
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("cannot write the file: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("cannot write the file: %w", err)
	}
	defer root.Close()
	resp, err := checked(f.c.GetJobFile(ctx, f.job, x.Name))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := write(root, name, resp.Body)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", filepath.Join(dir, name), err)
	}
	f.a.say("%s: %s", filepath.Join(dir, name), size(n))
	return nil
}

func write(root *os.Root, name string, from io.Reader) (n int64, err error) {
	if err := root.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return 0, err
	}
	part := name + ".part"
	out, err := root.Create(part)
	if err != nil {
		return 0, err
	}
	n, err = io.Copy(out, from)
	if err = errors.Join(err, out.Close()); err != nil {
		return n, errors.Join(err, root.Remove(part))
	}
	return n, root.Rename(part, name)
}

// put uploads files under their own names.
func (f jobFiles) put(ctx context.Context, paths []string) error {
	for _, p := range paths {
		if err := f.putOne(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (f jobFiles) putOne(ctx context.Context, p string) error {
	file, err := os.Open(p)
	if err != nil {
		return usagef("cannot send %q: %v", p, errors.Unwrap(err))
	}
	defer file.Close()
	sum := sha256.New()
	done, err := read[wire.JobFile](f.c.PutJobFileWithBody(ctx, f.job, path.Base(filepath.ToSlash(p)), nil, "application/octet-stream",
		io.TeeReader(file, sum)))
	if err != nil {
		return err
	}
	if got := done.value.Sha256; got != hex.EncodeToString(sum.Sum(nil)) {
		return fmt.Errorf("%s did not arrive as it was sent", p)
	}
	if f.a.json {
		return f.a.printJSON(done.raw)
	}
	f.a.say("%s: %s", done.value.Name, size(done.value.Size))
	return nil
}

func (f jobFiles) remove(ctx context.Context, names []string) error {
	for _, name := range names {
		if _, err := read[struct{}](f.c.DeleteJobFile(ctx, f.job, name, nil)); err != nil {
			return err
		}
	}
	return nil
}
