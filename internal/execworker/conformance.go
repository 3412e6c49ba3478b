package execworker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/execspec"
)

// conformanceArg makes Main the program of `cjmd worker-check`: the worker runs
// its own binary for each call, in the way in which it would run any program.
const conformanceArg = "--conformance"

func conformanceSpec() execspec.Spec {
	return execspec.Spec{
		Name: "conformance", Version: "1", Command: []string{"/proc/self/exe", Verb, conformanceArg},
		Stdin: execspec.Stdin{JSON: true}, Stdout: execspec.StdoutNDJSON,
		Result: &execspec.Result{File: "result.json"},
	}
}

// conformance is that program: the functions of docs/worker-protocol.md that
// need no worker of their own.
func conformance(stdin io.Reader, stdout, stderr io.Writer) int {
	raw, err := io.ReadAll(stdin)
	var in struct {
		Kwargs struct {
			Op, Category, Message string
			Retriable, Deaf       bool
			To, Bytes             int
		}
	}
	if err == nil {
		err = json.Unmarshal(raw, &in)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	k := in.Kwargs
	result := raw
	switch k.Op {
	case "echo":
	case "count":
		out := bufio.NewWriter(stdout)
		for n := 1; n <= k.To; n++ {
			fmt.Fprintln(out, n)
		}
		_ = out.Flush() // a reader that is gone is noticed by the worker
		result = fmt.Appendf(nil, "%d", k.To)
	case "big":
		result = append(append([]byte{'"'}, bytes.Repeat([]byte("x"), k.Bytes)...), '"')
	case "noise":
		fmt.Fprint(stdout, strings.Repeat("x", k.Bytes))
		result = fmt.Appendf(nil, "%d", k.Bytes)
	case "wait":
		return waitForSignal(k.Deaf, stderr)
	case "fail":
		return sayFailure(stderr, saidError{Category: k.Category, Message: k.Message, Retriable: &k.Retriable})
	default:
		return sayFailure(stderr, saidError{Category: "user_input", Message: fmt.Sprintf("there is no op %q", k.Op)})
	}
	if err := os.WriteFile("result.json", result, 0o600); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// waitForSignal ends by a signal, as a program without handlers would.
func waitForSignal(deaf bool, stderr io.Writer) int {
	signals := make(chan os.Signal, 1)
	if deaf {
		signal.Ignore(unix.SIGINT)
		signal.Notify(signals, unix.SIGTERM)
	} else {
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	}
	fmt.Fprintln(stderr, sayProgress+"-1 waiting")
	<-signals
	return 130
}

func sayFailure(stderr io.Writer, e saidError) int {
	b, err := json.Marshal(e)
	if err != nil {
		return 2
	}
	fmt.Fprintln(stderr, sayError+string(b))
	return 1
}
