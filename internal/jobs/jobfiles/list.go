package jobfiles

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
)

// Listing is what a job's directory holds.
type Listing struct {
	Files []File
	Bytes int64
	// Unnamed counts what cannot be fetched: links, devices, sockets, files with
	// names that CheckName refuses, directories nested too deeply.
	Unnamed int
	More    bool // there are more files than are listed
}

// List lists the files of a job, in order of names.
func (s *Store) List(job string) (Listing, error) {
	out := Listing{Files: []File{}}
	err := s.walk(job, func(f found) bool {
		if f.name == "" {
			out.Unnamed++
			return true
		}
		if len(out.Files) == s.limits.JobFiles {
			out.More = true
			return false
		}
		out.Bytes += f.size
		out.Files = append(out.Files, s.describe(job, f.name, &f.stat))
		return true
	})
	return out, err
}

// Sum returns f with its checksum. It reads the file once for each of its
// versions; one that changes meanwhile stays without.
func (s *Store) Sum(ctx context.Context, job string, f File) (File, error) {
	if f.SHA256 != "" {
		return f, nil
	}
	file, info, err := s.Open(job, f.Name)
	if err != nil {
		return f, err
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(ctxReader{ctx, file}, info.Size)); err != nil {
		return f, fmt.Errorf("cannot read a file of a job: %w", err)
	}
	after, err := s.Stat(job, f.Name)
	if err != nil || after.ETag != info.ETag {
		return f, err
	}
	info.SHA256 = hex.EncodeToString(h.Sum(nil))
	s.remember(job, info)
	return info, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// maxDigests bounds the checksums that are remembered.
const maxDigests = 10_000

type digestKey struct{ job, name string }

type digest struct{ etag, sum string }

func (s *Store) digestOf(job string, f File) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.digests[digestKey{job, f.Name}]; d.etag == f.ETag {
		return d.sum
	}
	return ""
}

func (s *Store) remember(job string, f File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.digests) >= maxDigests { // they are counted anew when they are asked for
		clear(s.digests)
	}
	s.digests[digestKey{job, f.Name}] = digest{f.ETag, f.SHA256}
}
