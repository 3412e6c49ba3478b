package wire

// Serve is the reading side of a worker: it hands over the daemon's requests one
// after the other until the connection ends or handle fails, and returns why.
// Notifications are passed over: the daemon sends none that a worker must know.
// params and payload belong to handle.
func Serve(in *Reader, handle func(id, method string, params, payload []byte) error) error {
	for {
		text, _, err := in.Next()
		if err != nil {
			return err
		}
		h, err := ParseHeader(text)
		if err != nil {
			return err
		}
		if h.Method == nil || !h.HasID {
			continue
		}
		id, method, params := string(h.ID), string(h.Method), append([]byte(nil), h.Params...)
		payload, err := in.TakePayload()
		if err != nil {
			return err
		}
		if err := handle(id, method, params, payload); err != nil {
			return err
		}
	}
}
