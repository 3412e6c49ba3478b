package envs

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const fetchTimeout = time.Minute

// fetch writes what is at an address to path. Failures are those of the
// network, so that they are tried again.
func fetch(ctx context.Context, address, path string) (string, error) {
	fail := func(err error, network bool) (string, error) {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", &StepError{Step: "fetch " + address, Code: -1, Network: network, cause: err}
	}
	bounded, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(bounded, http.MethodGet, address, nil)
	if err != nil {
		return fail(err, false)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fail(err, true)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("the server answered %s", resp.Status), resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxFileBytes+1))
	if err != nil {
		return fail(err, true)
	}
	if len(body) > maxFileBytes {
		return fail(fmt.Errorf("it is larger than %d bytes", maxFileBytes), false)
	}
	if err := os.WriteFile(path, body, 0o644); err != nil {
		return fail(err, false)
	}
	return path, nil
}
