package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
)

// resultAnswer streams a stored result, whole or a range of it.
type resultAnswer struct {
	req  *http.Request
	body io.ReadSeekCloser
	info jobs.ResultInfo
	at   time.Time
}

func (a resultAnswer) VisitGetResultResponse(w http.ResponseWriter) error {
	defer func() { _ = a.body.Close() }()
	h := w.Header()
	h.Set("Content-Type", resultType(a.info.ContentType))
	if a.info.SHA256 != "" {
		h.Set("ETag", `"`+a.info.SHA256+`"`)
	}
	if a.info.Partial {
		h.Set("X-Result-Partial", "true")
	}
	asData(h)
	rw := &rangeWriter{ResponseWriter: w}
	http.ServeContent(rw, a.req, "", a.at, a.body)
	if rw.refused {
		h.Del("Content-Type")
		return &requestError{Code: codeBadRange, Detail: fmt.Sprintf("The result has %d bytes.", a.info.Size)}
	}
	return nil
}

// resultType is the content type that a plugin gave, if it is one: it goes into
// a header, where nonsense would be taken apart by whoever reads it.
func resultType(given string) string {
	if given == "" {
		return "application/json"
	}
	kind, params, err := mime.ParseMediaType(given)
	if err != nil || !strings.Contains(kind, "/") {
		return "application/octet-stream"
	}
	if text := mime.FormatMediaType(kind, params); text != "" {
		return text
	}
	return "application/octet-stream"
}

// rangeWriter keeps back ServeContent's refusal of a range, which is no problem
// document.
type rangeWriter struct {
	http.ResponseWriter
	refused bool
}

func (r *rangeWriter) WriteHeader(status int) {
	if status == http.StatusRequestedRangeNotSatisfiable {
		r.refused = true
		return
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *rangeWriter) Write(b []byte) (int, error) {
	if r.refused {
		return len(b), nil
	}
	return r.ResponseWriter.Write(b)
}

// GetResult is GET /v1/jobs/{id}/result.
func (s *server) GetResult(ctx context.Context, req wire.GetResultRequestObject) (wire.GetResultResponseObject, error) {
	j, err := s.o.Jobs.Get(ctx, jobs.ID(req.Id))
	if err != nil {
		return nil, err
	}
	if !j.Status.Final() {
		return nil, &requestError{Code: codeNotFinal}
	}
	if j.Result == nil {
		return nil, &requestError{Code: codeNoResult}
	}
	body, info, err := s.o.Jobs.Result(ctx, j.ID)
	if errors.Is(err, jobs.ErrNotFound) {
		return nil, &requestError{Code: codeNoResult, Cause: err}
	}
	if err != nil {
		return nil, err
	}
	if deref(req.Params.Unwrap) {
		if body, info, err = unwrapped(body, info); err != nil {
			return nil, err
		}
	}
	return resultAnswer{req: requestOf(ctx), body: body, info: info, at: j.FinishedAt}, nil
}

// maxUnwrap is the largest result that is looked into.
const maxUnwrap = 64 << 20

// unwrapped is the data of a typed result, {"__wire__": kind, "data": data}; any
// other is answered as it is.
func unwrapped(body io.ReadSeekCloser, info jobs.ResultInfo) (io.ReadSeekCloser, jobs.ResultInfo, error) {
	if info.ContentType != "" && info.ContentType != "application/json" || info.Size > maxUnwrap {
		return body, info, nil
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		return nil, info, errors.Join(fmt.Errorf("cannot read a result: %w", err), body.Close())
	}
	var m map[string]json.RawMessage
	var kind string
	if json.Unmarshal(raw, &m) != nil || len(m) != 2 || m["data"] == nil || json.Unmarshal(m["__wire__"], &kind) != nil {
		_, err := body.Seek(0, io.SeekStart)
		return body, info, err
	}
	sum := sha256.Sum256(m["data"])
	info.Size, info.SHA256 = int64(len(m["data"])), hex.EncodeToString(sum[:])
	return inMemory{bytes.NewReader(m["data"])}, info, body.Close()
}

type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }
