package api

import (
	"context"
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
	// What a plugin returned is data: a browser must not take it for a page, and
	// if it does, for one that may do nothing here.
	h.Set("Content-Disposition", "attachment")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
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
	return resultAnswer{req: requestOf(ctx), body: body, info: info, at: j.FinishedAt}, nil
}
