package plugins

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Python itself says what is right.
func TestSchemaHash_IsPythons(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("there is no python3 to compare with")
	}
	for _, doc := range []string{
		`{}`, `[]`, `null`, `{"b":1,"a":[true,false,null],"ä":"ü\u2028\ud83d\ude00","A":""}`,
		`{"n":[0,-0,1.0,-0.0,1e16,1e-5,0.0001,123456789012345678901234567890,1E3,2.50,1.7976931348623157e308,5e-324,1e999,-1e999]}`,
		`"\u007f\u0000\b\f\n\r\t\"\\/"`, `{"\ue000":1,"\ud83d\ude00":2}`,
		`{"type":"object","properties":{"beam":{"type":"number","default":1e-48,"minimum":1e-90}}}`,
	} {
		cmd := exec.Command(python, "-c", `import json,sys; sys.stdout.write(json.dumps(json.loads(sys.stdin.read()),sort_keys=True,separators=(",",":")))`)
		cmd.Stdin = strings.NewReader(doc)
		want, err := cmd.Output()
		require.NoError(t, err, doc)
		sum := sha256.Sum256(want)
		got, err := SchemaHash(json.RawMessage(doc))
		require.NoError(t, err)
		assert.Equal(t, "sha256:"+hex.EncodeToString(sum[:]), got, "%s is %s in Python", doc, want)
	}
}
