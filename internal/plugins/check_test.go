package plugins

import (
	"cmp"
	"encoding/json"
	"errors"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func issuesOf(t *testing.T, schema, config string, strict bool) []Issue {
	t.Helper()
	issues, err := CheckConfig(Manifest{Schema: json.RawMessage(schema), Strict: strict}, json.RawMessage(config))
	require.NoError(t, err)
	return issues
}

func TestCheckConfig_MessagesOfThePythonSystem(t *testing.T) {
	t.Parallel()
	const schema = `{"type":"object","properties":{
		"F":{"enum":["a"]}, "mixed":{"enum":[1, 2.5, null, true, "it's"]},
		"n":{"type":"integer","minimum":1,"maximum":5}, "x":{"type":"number","minimum":0.5},
		"s":{"type":"string","minLength":1,"maxLength":3}, "p":{"type":"string","pattern":"^a"}, "open":{"type":"string","pattern":"ab"}
	}}`
	for config, want := range map[string]string{
		`{"F":"z"}`:       `F: 'z' is not one of ['a']`,
		`{"F":null}`:      `F: None is not one of ['a']`,
		`{"F":{"k":[1]}}`: `F: {'k': [1]} is not one of ['a']`,
		`{"mixed":"x"}`:   `mixed: 'x' is not one of [1, 2.5, None, True, "it's"]`,
		`{"n":0}`:         `n: 0 is less than minimum 1`,
		`{"n":9}`:         `n: 9 is greater than maximum 5`,
		`{"x":0.25}`:      `x: 0.25 is less than minimum 0.5`,
		`{"s":""}`:        `s: string length 0 is less than minimum 1`,
		`{"s":"äöüß"}`:    `s: string length 4 is greater than maximum 3`,
		`{"p":"b"}`:       `p: 'b' does not match pattern '^a'`,
		`{"open":"xab"}`:  `open: 'xab' does not match pattern 'ab'`,
		`{"nn":1}`:        `nn: unknown key (did you mean "n"?)`,
	} {
		issues := issuesOf(t, schema, config, false)
		require.Len(t, issues, 1, config)
		require.Equal(t, want, issues[0].Message)
		require.False(t, issues[0].Warning, config)
	}
	for _, config := range []string{
		`{"mixed":1.0}`, `{"mixed":2.5}`, `{"mixed":null}`, `{"n":true}`, `{"s":null}`, `{"open":"abx"}`, `{"p":"a"}`, `{}`,
	} {
		for _, i := range issuesOf(t, schema, config, false) {
			require.True(t, i.Warning, "%s: %s", config, i.Message)
		}
	}
}

func TestCheckConfig_TheRuleRepeatsNoValue(t *testing.T) {
	t.Parallel()
	const schema = `{"properties":{"e":{"enum":["a"]},"low":{"minimum":5000},"high":{"maximum":5},"p":{"pattern":"^a"},"long":{"maxLength":3}}}`
	issues := issuesOf(t, schema, `{"e":"s3cret","low":4711,"high":4711,"p":"s3cret","long":"s3cret"}`, false)
	require.Len(t, issues, 5)
	for _, i := range issues {
		said := cmp.Or(i.Rule, i.Message)
		require.NotContains(t, said, "s3cret")
		require.NotContains(t, said, "4711")
	}
}

func TestCheckConfig_TypesAreWarningsUnlessStrict(t *testing.T) {
	t.Parallel()
	const schema = `{"properties":{"n":{"type":"integer"},"o":{"type":["string","null"]},"d":{"type":"string","default":{}},"f":{"type":"number"}}}`
	issues := issuesOf(t, schema, `{"n":"7","o":3,"d":{},"f":1}`, false)
	require.Equal(t, []Issue{
		{"/n", "n: expected integer, got string", true, ""},
		{"/o", "o: expected string or null, got integer", true, ""},
	}, issues)
	require.Equal(t, []Issue{{"/n", "n: expected integer, got boolean", false, ""}}, issuesOf(t, schema, `{"n":true,"o":null,"f":1.5}`, true))
	require.Empty(t, issuesOf(t, schema, `{"n":3.0}`, true))
}

func TestCheckConfig_GoesBelowTheTop(t *testing.T) {
	t.Parallel()
	const schema = `{"properties":{
		"decoder":{"type":"object","properties":{"beam":{"type":"integer","minimum":1}},"required":["beam"]},
		"tags":{"type":"array","items":{"type":"string","enum":["a","b"]}},
		"free":{"type":"object"},
		"map":{"type":"object","additionalProperties":{"type":"integer","maximum":3}}
	}}`
	require.Equal(t, []Issue{
		{"/decoder/be~1am", `decoder.be/am: unknown key (did you mean "beam"?)`, false, ""},
		{"/decoder/beam", "decoder.beam: 0 is less than minimum 1", false, "decoder.beam: must be at least 1"},
		{"/map/k~0", "map.k~: 9 is greater than maximum 3", false, "map.k~: must be at most 3"},
		{"/tags/1", "tags[1]: 'c' is not one of ['a', 'b']", false, "tags[1]: must be one of ['a', 'b']"},
	}, issuesOf(t, schema, `{"decoder":{"beam":0,"be/am":1},"tags":["a","c"],"free":{"any":1},"map":{"k~":9}}`, false))
	require.Equal(t, []Issue{{"/decoder/beam", "decoder.beam: is required", false, ""}}, issuesOf(t, schema, `{"decoder":{}}`, false))
}

func TestCheckConfig_UnknownKeysNeedProperties(t *testing.T) {
	t.Parallel()
	require.Empty(t, issuesOf(t, `{}`, `{"a":1}`, true))
	require.Empty(t, issuesOf(t, ``, `{"a":1}`, true))
	require.Empty(t, issuesOf(t, `{"properties":{"b":{}},"additionalProperties":true}`, `{"a":1}`, true))
	require.Len(t, issuesOf(t, `{"properties":{}}`, `{"a":1}`, false), 1)
	require.Len(t, issuesOf(t, `{"additionalProperties":false}`, `{"a":1}`, false), 1)
}

func TestCheckConfig_APatternGoCannotCompileIsAWarning(t *testing.T) {
	t.Parallel()
	issues := issuesOf(t, `{"properties":{"p":{"pattern":"(?=a)a"}}}`, `{"p":"b"}`, true)
	require.Len(t, issues, 1)
	require.True(t, issues[0].Warning)
	require.Contains(t, issues[0].Message, "cannot be checked here")
}

func TestCheckConfig_RefusesWhatIsNoObject(t *testing.T) {
	t.Parallel()
	for _, config := range []string{`[]`, `1`, `{"a":1`, `{"a":1,"a":2}`, `{} {}`} {
		_, err := CheckConfig(Manifest{}, json.RawMessage(config))
		require.Error(t, err, config)
	}
	for _, config := range []string{``, `null`, `{}`} {
		_, err := CheckConfig(Manifest{}, json.RawMessage(config))
		require.NoError(t, err, config)
	}
}

func TestMergeDefaults_FillsWhatIsMissing(t *testing.T) {
	t.Parallel()
	man := Manifest{Schema: json.RawMessage(`{"properties":{"a":{"default":1},"b":{"default":{"x":[]}},"c":{},"big":{"default":12345678901234567890}}}`)}
	for config, want := range map[string]string{
		``:                   `{"a":1,"b":{"x":[]},"big":12345678901234567890}`,
		`null`:               `{"a":1,"b":{"x":[]},"big":12345678901234567890}`,
		`{"a":null,"b":"x"}`: `{"a":null,"b":"x","big":12345678901234567890}`,
		`{"zz":1.50}`:        `{"a":1,"b":{"x":[]},"big":12345678901234567890,"zz":1.50}`,
	} {
		got, err := MergeDefaults(man, json.RawMessage(config))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	got, err := MergeDefaults(Manifest{}, nil)
	require.NoError(t, err)
	require.Equal(t, `{}`, string(got))
}

// python runs a program with the interpreter of this machine.
func python(t *testing.T, code, input string) string {
	t.Helper()
	bin, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	out, err := exec.Command(bin, "-c", code, input).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("python3: %v: %s", err, exit.Stderr)
	}
	require.NoError(t, err)
	return string(out)
}

func TestPythonRepr_IsWhatPythonWrites(t *testing.T) {
	t.Parallel()
	values := `[null, true, false, 0, -7, 1.0, 0.5, 1e16, 1e15, 1.5e-5, 0.0001, 1e300, -0.0, 12345678901234567890123,
		"", "a", "it's", "say \"x\"", "both ' and \"", "back\\slash", "line\nfeed\ttab\r", "\u0000\u001f\u007f\u00a0\u200b", "äöü 漢字 🎉", [1, ["x"]], {"k": {"b": 1}}]`
	want := python(t, `import json,sys; print(json.dumps([repr(v) for v in json.loads(sys.argv[1])]))`, values)
	var reprs []string
	require.NoError(t, json.Unmarshal([]byte(want), &reprs))
	tree, err := decodeJSON([]byte(values))
	require.NoError(t, err)
	for i, v := range tree.([]any) {
		require.Equal(t, reprs[i], pyRepr(v))
	}
}

func TestPythonPatterns_MatchAsReMatchDoes(t *testing.T) {
	t.Parallel()
	type sample struct {
		Pattern string `json:"p"`
		Text    string `json:"t"`
	}
	var samples []sample
	for _, p := range []string{
		`^a`, `a`, `a$`, `a|b`, `^a|b$`, `a\Z`, `[$]`, `[]a]+$`, `[^]]$`, `\$x`, `(?P<name>a+)b`, `(?i)A$`, `\d{2,3}$`, `[[:x]+$`, `\u00e4$`, `[\w.-]+@\w+$`, `(?m)a$`, `(?s).*b`, ``, `\\Z`,
	} {
		for _, s := range []string{"", "a", "ab", "ba", "a\n", "a\n\n", "$", "]", "x]", "$x", "aab", "A", "12", "1234", "[", ":x", "ä", "me@host", "a\nb", `\Z`} {
			samples = append(samples, sample{p, s})
		}
	}
	input, err := json.Marshal(samples)
	require.NoError(t, err)
	out := python(t, `
import json, re, sys, warnings
warnings.simplefilter("ignore")
print(json.dumps([re.match(x["p"], x["t"]) is not None for x in json.loads(sys.argv[1])]))`, string(input))
	var want []bool
	require.NoError(t, json.Unmarshal([]byte(out), &want))
	for i, s := range samples {
		re, err := compilePython(s.Pattern)
		require.NoError(t, err, s.Pattern)
		require.Equal(t, want[i], re.MatchString(s.Text), "pattern %q on %q", s.Pattern, s.Text)
	}
}

// A configuration made of the defaults alone is never refused for its values
// being of other types than declared, and merging twice changes nothing.
func TestDefaults_AreStable(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.SampledFrom([]string{`1`, `"x"`, `null`, `{}`, `[1]`, `1.5`, `true`})
		kind := rapid.SampledFrom([]string{"string", "integer", "number", "boolean", "array", "object"})
		schema := `{"properties":{"a":{"type":"` + kind.Draw(t, "ka") + `","default":` + value.Draw(t, "a") + `},"b":{"type":"` + kind.Draw(t, "kb") + `","default":` + value.Draw(t, "b") + `}}}`
		man := Manifest{Schema: json.RawMessage(schema), Strict: true}
		once, err := MergeDefaults(man, nil)
		if err != nil {
			t.Fatal(err)
		}
		issues, err := CheckConfig(man, once)
		if err != nil || len(issues) > 0 {
			t.Fatalf("%s: %v %v", schema, issues, err)
		}
		twice, err := MergeDefaults(man, once)
		if err != nil || string(twice) != string(once) {
			t.Fatalf("%s became %s", once, twice)
		}
	})
}
