package harness

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"strconv"
	"time"
)

// Client is one keep-alive connection that sends prepared requests. It is as
// lean as the tools that load web servers: on a small machine a comfortable
// client would use more of it than what is measured. For one goroutine.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
	body []byte
}

// Dial connects to the daemon.
func Dial(ctx context.Context, network, address string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the daemon: %w", err)
	}
	return &Client{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// Close ends the connection, and with it a read that waits.
func (c *Client) Close() error { return c.conn.Close() }

// SetDeadline bounds everything that follows.
func (c *Client) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// Request prepares a request; body may be empty, token too.
func Request(method, path, token string, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: localhost\r\n", method, path)
	if token != "" {
		fmt.Fprintf(&b, "Authorization: Bearer %s\r\n", token)
	}
	if len(body) > 0 {
		b.WriteString("Content-Type: application/json\r\n")
	}
	if len(body) > 0 || method != "GET" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// Do sends a prepared request and returns the status and the whole body, which
// is valid until the next call.
func (c *Client) Do(request []byte) (int, []byte, error) {
	if _, err := c.conn.Write(request); err != nil {
		return 0, nil, fmt.Errorf("cannot send a request: %w", err)
	}
	status, length, err := c.head()
	if err != nil {
		return 0, nil, err
	}
	if length < 0 {
		text, err := io.ReadAll(httputil.NewChunkedReader(c.r))
		if err == nil {
			_, err = c.r.ReadSlice('\n') // the empty line behind the last chunk
		}
		return status, text, err
	}
	if cap(c.body) < length {
		c.body = make([]byte, length)
	}
	c.body = c.body[:length]
	if _, err := io.ReadFull(c.r, c.body); err != nil {
		return 0, nil, fmt.Errorf("cannot read an answer: %w", err)
	}
	return status, c.body, nil
}

// Stream sends a prepared request and returns the events of its answer.
func (c *Client) Stream(request []byte) (*Events, error) {
	if _, err := c.conn.Write(request); err != nil {
		return nil, fmt.Errorf("cannot send a request: %w", err)
	}
	status, length, err := c.head()
	if err != nil {
		return nil, err
	}
	if status != 200 || length >= 0 {
		text := make([]byte, max(length, 0))
		_, _ = io.ReadFull(c.r, text)
		return nil, &StatusError{Status: status, Body: string(text)}
	}
	return &Events{r: bufio.NewReaderSize(httputil.NewChunkedReader(c.r), 64<<10)}, nil
}

// StatusError is an answer that was not the one hoped for.
type StatusError struct {
	Status int
	Body   string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("the daemon answered %d: %.400s", e.Status, e.Body)
}

// head reads the status line and the headers. length is -1 for a chunked body.
func (c *Client) head() (status, length int, err error) {
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read an answer: %w", err)
	}
	if len(line) < 12 {
		return 0, 0, fmt.Errorf("cannot read an answer: it begins with %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, 0, fmt.Errorf("cannot read an answer: %w", err)
	}
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, 0, fmt.Errorf("cannot read an answer: %w", err)
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			return status, length, nil
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, 0, fmt.Errorf("cannot read an answer: %w", err)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			length = -1
		}
	}
}

// Events reads server-sent events, no more of them than a counter needs: one
// line of data each, as the daemon writes them.
type Events struct {
	r    *bufio.Reader
	kind []byte
	data []byte
}

const (
	kindField = "event: "
	dataField = "data: "
)

var errCut = errors.New("the stream ended before its end was told")

// Next returns the next event; both are valid until the next call. It returns
// io.EOF behind the event that tells the end.
func (e *Events) Next() (kind, data []byte, err error) {
	if string(e.kind) == "stream.end" {
		return nil, nil, io.EOF
	}
	e.kind, e.data = e.kind[:0], e.data[:0]
	for {
		line, err := e.line()
		if err != nil {
			return nil, nil, err
		}
		switch {
		case hasPrefix(line, kindField):
			e.kind = append(e.kind, line[len(kindField):]...)
		case hasPrefix(line, dataField):
			e.data = append(e.data, line[len(dataField):]...)
		case len(line) == 0 && len(e.kind) > 0:
			return e.kind, e.data, nil
		}
	}
}

func hasPrefix(line []byte, prefix string) bool {
	return len(line) >= len(prefix) && string(line[:len(prefix)]) == prefix
}

func (e *Events) line() ([]byte, error) {
	line, err := e.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := append([]byte(nil), line...)
		var rest []byte
		rest, err = e.r.ReadBytes('\n')
		line = append(long, rest...)
	}
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the stream: %w", err)
	}
	return bytes.TrimRight(line, "\r\n"), nil
}
