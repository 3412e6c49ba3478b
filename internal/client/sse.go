package client

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// Event is one server-sent event.
type Event struct {
	ID   string // "" when the stream has given none yet
	Kind string // "message" when the event named none
	Data []byte // lines joined with "\n"
}

// SSEReader reads server-sent events from an open answer, by the rules of the
// HTML standard: lines end in CR, LF or CRLF, comments are skipped, an event
// that is cut off by the end of the stream is discarded. For one goroutine.
type SSEReader struct {
	r     *bufio.Reader
	id    string
	retry time.Duration
	first bool
	skip  bool // the byte before was a CR: an LF now belongs to it
	line  []byte
	max   int
}

// ErrEventTooLong says that an event was over the reader's limit.
var ErrEventTooLong = errors.New("event is longer than the reader accepts")

// NewSSEReader reads from r; events may be up to 256 MiB, the daemon's own limit.
func NewSSEReader(r io.Reader) *SSEReader {
	return &SSEReader{r: bufio.NewReaderSize(r, 64<<10), first: true, max: 256 << 20}
}

// LastID is the id a reconnect has to send: that of the last complete event
// which carried one.
func (s *SSEReader) LastID() string { return s.id }

// Retry is the delay the stream asked for, 0 when it asked for none.
func (s *SSEReader) Retry() time.Duration { return s.retry }

// Next returns the next event. At a clean end it returns io.EOF, also when an
// event was cut off there.
func (s *SSEReader) Next() (Event, error) {
	var ev Event
	id, sawID, sawData := s.id, false, false
	for {
		line, err := s.readLine()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return Event{}, io.EOF
			}
			return Event{}, err
		}
		if s.first {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
			s.first = false
		}
		if len(line) == 0 {
			if sawID {
				s.id = id
			}
			if !sawData {
				ev, sawID = Event{}, false
				continue
			}
			ev.ID = s.id
			if ev.Kind == "" {
				ev.Kind = "message"
			}
			return ev, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "data":
			if sawData {
				ev.Data = append(ev.Data, '\n')
			}
			sawData = true
			if len(ev.Data)+len(value) > s.max {
				return Event{}, ErrEventTooLong
			}
			ev.Data = append(ev.Data, value...)
		case "event":
			ev.Kind = string(value)
		case "id":
			if bytes.IndexByte(value, 0) < 0 {
				id, sawID = string(value), true
			}
		case "retry":
			if ms, err := strconv.ParseUint(string(value), 10, 31); err == nil {
				s.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
}

// readLine returns one line without its end; io.EOF when the stream ends before
// the line did. The bytes are valid until the next call.
func (s *SSEReader) readLine() ([]byte, error) {
	s.line = s.line[:0]
	for {
		if _, err := s.r.Peek(1); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, io.EOF
			}
			if errors.Is(err, io.EOF) {
				return nil, err
			}
			return nil, fmt.Errorf("cannot read the event stream: %w", err)
		}
		buf, _ := s.r.Peek(s.r.Buffered())
		if s.skip {
			s.skip = false
			if buf[0] == '\n' {
				s.discard(1)
				continue
			}
		}
		i := bytes.IndexAny(buf, "\r\n")
		if i < 0 {
			if len(s.line)+len(buf) > s.max {
				return nil, ErrEventTooLong
			}
			s.line = append(s.line, buf...)
			s.discard(len(buf))
			continue
		}
		s.line = append(s.line, buf[:i]...)
		s.skip = buf[i] == '\r'
		s.discard(i + 1)
		return s.line, nil
	}
}

// discard drops n buffered bytes; it cannot fail for what was just peeked.
func (s *SSEReader) discard(n int) { _, _ = s.r.Discard(n) }
