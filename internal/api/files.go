package api

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
)

// ListJobFiles is GET /v1/jobs/{id}/files.
func (s *server) ListJobFiles(ctx context.Context, req wire.ListJobFilesRequestObject) (wire.ListJobFilesResponseObject, error) {
	sums := req.Params.Checksums == nil || *req.Params.Checksums
	files, err := s.o.Jobs.Files(ctx, jobs.ID(req.Id), sums)
	if err != nil {
		return nil, err
	}
	out := wire.ListJobFiles200JSONResponse{Files: make([]wire.JobFile, len(files.Files)), Bytes: files.Bytes, LimitBytes: files.Limit,
		Dir: files.Dir, Unlisted: files.Unnamed, More: files.More}
	for i, f := range files.Files {
		out.Files[i] = wireFile(req.Id, f)
	}
	return out, nil
}

func wireFile(job string, f jobs.File) wire.JobFile {
	return wire.JobFile{Name: f.Name, Size: f.Size, Sha256: f.SHA256, ModifiedAt: f.Modified, Etag: f.ETag, Url: fileURL(job, f.Name)}
}

func fileURL(job, name string) string {
	u := url.URL{Path: "/v1/jobs/" + job + "/files/" + name}
	return u.EscapedPath()
}

// GetJobFile is GET /v1/jobs/{id}/files/{name}.
func (s *server) GetJobFile(ctx context.Context, req wire.GetJobFileRequestObject) (wire.GetJobFileResponseObject, error) {
	return s.openFile(ctx, req.Id, req.Name)
}

// HeadJobFile is HEAD of the same.
func (s *server) HeadJobFile(ctx context.Context, req wire.HeadJobFileRequestObject) (wire.HeadJobFileResponseObject, error) {
	return s.openFile(ctx, req.Id, req.Name)
}

func (s *server) openFile(ctx context.Context, id, name string) (*fileAnswer, error) {
	file, info, err := s.o.Jobs.OpenFile(ctx, jobs.ID(id), name)
	if err != nil {
		return nil, err
	}
	return &fileAnswer{req: requestOf(ctx), file: file, info: info}, nil
}

// fileAnswer streams a file, whole or a range of it.
type fileAnswer struct {
	req  *http.Request
	file *os.File
	info jobs.File
}

func (a *fileAnswer) VisitGetJobFileResponse(w http.ResponseWriter) error  { return a.serve(w) }
func (a *fileAnswer) VisitHeadJobFileResponse(w http.ResponseWriter) error { return a.serve(w) }

func (a *fileAnswer) serve(w http.ResponseWriter) error {
	defer func() { _ = a.file.Close() }()
	h := w.Header()
	kind := mime.TypeByExtension(path.Ext(a.info.Name))
	if kind == "" {
		kind = "application/octet-stream"
	}
	h.Set("Content-Type", kind)
	h.Set("ETag", a.info.ETag)
	if raw, err := hex.DecodeString(a.info.SHA256); err == nil && len(raw) > 0 {
		h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(raw)+":")
	}
	asData(h)
	rw := &rangeWriter{ResponseWriter: w}
	// The size is that of now: a worker may go on writing.
	http.ServeContent(rw, a.req, "", a.info.Modified, io.NewSectionReader(a.file, 0, a.info.Size))
	if rw.refused {
		h.Del("Content-Type")
		return &requestError{Code: codeBadRange, Detail: fmt.Sprintf("The file has %d bytes.", a.info.Size)}
	}
	return nil
}

// asData says that what a plugin made is data: a browser must not take it for a
// page, and if it does, for one that may do nothing here.
func asData(h http.Header) {
	h.Set("Content-Disposition", "attachment")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
}

// PutJobFile is PUT /v1/jobs/{id}/files/{name}.
func (s *server) PutJobFile(ctx context.Context, req wire.PutJobFileRequestObject) (wire.PutJobFileResponseObject, error) {
	id, err := s.own(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	p := req.Params
	u := jobs.Upload{Body: req.Body, Size: requestOf(ctx).ContentLength, IfMatch: deref(p.IfMatch), IfAbsent: deref(p.IfNoneMatch) == "*"}
	if p.IfNoneMatch != nil && !u.IfAbsent {
		return nil, badParam("If-None-Match", "can only be *")
	}
	if u.SHA256, err = checksum(deref(p.ContentDigest), deref(p.XChecksumSHA256)); err != nil {
		return nil, err
	}
	f, created, err := s.o.Jobs.PutFile(ctx, id, req.Name, u)
	if err != nil {
		return nil, err
	}
	stored, at := wireFile(req.Id, f), fileURL(req.Id, f.Name)
	if created {
		return wire.PutJobFile201JSONResponse{Body: stored, Headers: wire.PutJobFile201ResponseHeaders{ETag: f.ETag, Location: at}}, nil
	}
	return wire.PutJobFile200JSONResponse{FileStoredJSONResponse: wire.FileStoredJSONResponse{
		Body: stored, Headers: wire.FileStoredResponseHeaders{ETag: f.ETag, Location: at}}}, nil
}

// checksum reads the SHA-256 that a client announced, "" when it did not.
func checksum(contentDigest, plain string) (string, error) {
	var fromDigest string
	for _, part := range strings.Split(contentDigest, ",") {
		algorithm, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if !strings.EqualFold(algorithm, "sha-256") {
			continue // others are to be ignored (RFC 9530)
		}
		raw, err := base64.StdEncoding.DecodeString(strings.Trim(value, ":"))
		if err != nil || len(raw) != 32 || len(value) < 2 || value[0] != ':' {
			return "", badParam("Content-Digest", "must be sha-256=:BASE64: of 32 bytes")
		}
		fromDigest = hex.EncodeToString(raw)
	}
	plain = strings.ToLower(plain)
	if raw, err := hex.DecodeString(plain); plain != "" && (err != nil || len(raw) != 32) {
		return "", badParam("X-Checksum-SHA256", "must be 64 hexadecimal digits")
	}
	if plain != "" && fromDigest != "" && plain != fromDigest {
		return "", badParam("X-Checksum-SHA256", "is another one than that of Content-Digest")
	}
	if plain == "" {
		return fromDigest, nil
	}
	return plain, nil
}

// DeleteJobFile is DELETE /v1/jobs/{id}/files/{name}.
func (s *server) DeleteJobFile(ctx context.Context, req wire.DeleteJobFileRequestObject) (wire.DeleteJobFileResponseObject, error) {
	id, err := s.own(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	if err := s.o.Jobs.RemoveFile(ctx, id, req.Name, deref(req.Params.IfMatch)); err != nil {
		return nil, err
	}
	return wire.DeleteJobFile204Response{}, nil
}

// The parts of a multipart submission.
const (
	partJob  = "job"
	partFile = "file" // takes its name from the filename that it carries
)

// receive reads a submission that comes with its files: the job into `into`, as
// op describes it, the files into a stage. The caller settles it when err is nil.
func (s *server) receive(ctx context.Context, r *multipart.Reader, op string, into any) (_ *jobs.Stage, err error) {
	stage, err := s.o.Jobs.NewStage()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stage.Settle(context.WithoutCancel(ctx)))
		}
	}()
	seen := false
	for {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, cutShort(err)
		}
		if part.FormName() == partJob {
			if seen {
				return nil, badMultipart("It has two parts called job.", nil)
			}
			seen = true
			err = s.readJob(partBody{part}, op, into)
		} else {
			err = stagePart(stage, part)
		}
		if err != nil {
			return nil, err
		}
	}
	if !seen {
		return nil, badMultipart("It has no part called job.", nil)
	}
	bodyRead(ctx)
	return stage, nil
}

// settle keeps the files of a submission that was accepted and removes those of
// any other.
func (s *server) settle(ctx context.Context, stage *jobs.Stage) {
	if stage == nil {
		return
	}
	if err := stage.Settle(context.WithoutCancel(ctx)); err != nil { // the daemon's next start tries again
		s.log.Warn("cannot tidy up after a submission", zap.String("request", requestID(ctx)), zap.Error(err))
	}
}

// partBody tells what goes wrong with a part from what goes wrong with its file.
type partBody struct{ io.Reader }

func (p partBody) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = cutShort(err)
	}
	return n, err
}

// cutShort is what a form that ends too early is.
func cutShort(err error) error {
	var re *requestError
	if errors.As(err, &re) { // the body itself did
		return re
	}
	return badMultipart("It ends too early.", err)
}

func badMultipart(detail string, cause error) error {
	return &requestError{Code: codeBadMultipart, Detail: detail, Cause: cause}
}

// readJob reads the part with the job as strictly as if it were the whole body.
func (s *server) readJob(part io.Reader, op string, into any) error {
	limit := s.o.Limits().largest(op)
	data, err := io.ReadAll(io.LimitReader(part, limit+1))
	if err != nil {
		return err
	}
	if int64(len(data)) > limit {
		return tooLarge(limit)
	}
	if err := s.bodies.verify(s.spec.rules[op], data); err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func stagePart(stage *jobs.Stage, part *multipart.Part) error {
	name := part.FormName()
	if name == partFile {
		name = filename(part)
	}
	sum, err := checksum(part.Header.Get("Content-Digest"), part.Header.Get("X-Checksum-SHA256"))
	if err != nil {
		return err
	}
	return stage.Put(name, jobs.Upload{Body: partBody{part}, Size: -1, SHA256: sum})
}

// filename is the name that a part carries, as it is written: Part.FileName cuts
// it to its last element, and a name with directories is to be kept or refused.
func filename(part *multipart.Part) string {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return ""
	}
	return params["filename"]
}

func explainFiles(err error) *requestError {
	var (
		name      *jobs.FileNameError
		quota     *jobs.FileQuotaError
		many      *jobs.TooManyFilesError
		condition *jobs.FileConditionError
		check     *jobs.ChecksumError
	)
	switch {
	case errors.Is(err, jobs.ErrNoFile):
		detail := ""
		if _, why, ok := strings.Cut(err.Error(), ": "); ok {
			detail = strings.ToUpper(why[:1]) + why[1:] + "."
		}
		return &requestError{Code: codeFileNotFound, Detail: detail, Cause: err}
	case errors.As(err, &name):
		return &requestError{Code: codeFileName, Detail: "It " + name.Reason + ".", Cause: err}
	case errors.As(err, &quota) && quota.Full:
		return &requestError{Code: codeFilesFull, Detail: "Those of all jobs may have " + strconv.FormatInt(quota.Limit, 10) + " bytes.", RetryAfter: time.Minute, Cause: err}
	case errors.As(err, &quota):
		return &requestError{Code: codeFileQuota, Detail: "It may have " + strconv.FormatInt(quota.Limit, 10) + " bytes.", Cause: err}
	case errors.As(err, &many):
		return &requestError{Code: codeFileQuota, Detail: "It may have " + strconv.Itoa(many.Limit) + " files.", Cause: err}
	case errors.As(err, &condition) && condition.Wanted:
		return &requestError{Code: codeFileChanged, Cause: err}
	case errors.As(err, &condition):
		return &requestError{Code: codeFileExists, Cause: err}
	case errors.As(err, &check):
		return &requestError{Code: codeChecksum, Detail: "What arrived has the SHA-256 " + check.Got + ".", Cause: err}
	case errors.Is(err, http.ErrMissingBoundary), errors.Is(err, http.ErrNotMultipart):
		return &requestError{Code: codeBadMultipart, Detail: "Its content type names no boundary.", Cause: err}
	}
	return nil
}
