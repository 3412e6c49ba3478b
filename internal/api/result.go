package api

import (
	"context"
	"errors"
	"io"
	"net/http"
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
	kind := a.info.ContentType
	if kind == "" {
		kind = "application/json"
	}
	h.Set("Content-Type", kind)
	if a.info.SHA256 != "" {
		h.Set("ETag", `"`+a.info.SHA256+`"`)
	}
	if a.info.Partial {
		h.Set("X-Result-Partial", "true")
	}
	// What a plugin returned is data: a browser must not take it for a page.
	h.Set("Content-Disposition", "attachment")
	http.ServeContent(w, a.req, "", a.at, a.body)
	return nil
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
