// Package spellings holds the tables that tests/record takes for Vitess's judgement against Vitess's own parser and
// printer.
package spellings

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "vitess.io/vitess/go/vt/proto/topodata"
	_ "vitess.io/vitess/go/vt/proto/vschema"
)

func table(t *testing.T, file string, into any) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatal(err)
	}
}

func message(t *testing.T, name string) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		t.Fatal(err)
	}
	return kind.New().Interface()
}

func TestWhatVitessTakesAndRefuses(t *testing.T) {
	var spellings []struct {
		Form, Message, Input string
		Vitess               bool
	}
	table(t, "spellings.json", &spellings)
	for _, s := range spellings {
		into := message(t, s.Message)
		var err error
		if s.Form == "json" {
			err = protojson.Unmarshal([]byte(s.Input), into)
		} else {
			err = prototext.Unmarshal([]byte(s.Input), into)
		}
		if (err == nil) != s.Vitess {
			t.Errorf("%s %s %q: %v", s.Message, s.Form, s.Input, err)
		}
	}
}

func TestHowVitessPrintsNumbers(t *testing.T) {
	var numbers []struct{ Message, Txt, Json string }
	table(t, "numbers.json", &numbers)
	for _, n := range numbers {
		of := message(t, n.Message)
		if err := prototext.Unmarshal([]byte(n.Txt), of); err != nil {
			t.Fatalf("%q: %v", n.Txt, err)
		}
		printed, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(of)
		if err != nil {
			t.Fatal(err)
		}
		// The library adds spaces at random.
		var compact bytes.Buffer
		if err := json.Compact(&compact, printed); err != nil {
			t.Fatal(err)
		}
		if compact.String() != n.Json {
			t.Errorf("%q: %s, not %s", n.Txt, compact.String(), n.Json)
		}
	}
}
