package api

import (
	"context"
	"errors"
	"slices"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/plugins"
)

// secretsOf finds whose secrets are meant: those of the plugin, which all its
// instances share.
func (s *server) secretsOf(name string) (plugins.Manifest, error) {
	_, man, err := s.o.Plugins.Instance(name)
	var missing *plugins.NotFoundError
	if err == nil || errors.As(err, &missing) {
		return man, err
	}
	// A manifest that cannot be used has a name all the same.
	p, err := s.o.Plugins.Plugin(name)
	return plugins.Manifest{Name: p.Name}, err
}

// ListSecrets is GET /v1/plugins/{name}/secrets.
func (s *server) ListSecrets(_ context.Context, req wire.ListSecretsRequestObject) (wire.ListSecretsResponseObject, error) {
	man, err := s.secretsOf(req.Name)
	if err != nil {
		return nil, err
	}
	have, err := s.o.Secrets.Names(man.Name)
	if err != nil {
		return nil, err
	}
	names := slices.Concat(man.Secrets, man.OptionalSecrets, have)
	slices.Sort(names)
	out := wire.SecretList{Plugin: man.Name, Secrets: []wire.SecretState{}}
	for _, name := range slices.Compact(names) {
		out.Secrets = append(out.Secrets, wire.SecretState{Name: name, Set: slices.Contains(have, name), Required: slices.Contains(man.Secrets, name)})
	}
	return wire.ListSecrets200JSONResponse(out), nil
}

// PutSecret is PUT /v1/plugins/{name}/secrets/{secret}. Nothing that leaves here
// holds the value.
func (s *server) PutSecret(_ context.Context, req wire.PutSecretRequestObject) (wire.PutSecretResponseObject, error) {
	man, err := s.secretsOf(req.Name)
	if err != nil {
		return nil, err
	}
	if err := s.o.Secrets.Set(man.Name, req.Secret, req.Body.Value); err != nil {
		var name *plugins.SecretNameError
		if errors.As(err, &name) {
			return nil, &requestError{Code: codeSecretName, Detail: "The name " + name.Reason + ".", Cause: err}
		}
		return nil, err
	}
	return wire.PutSecret204Response{}, nil
}

// DeleteSecret is DELETE /v1/plugins/{name}/secrets/{secret}.
func (s *server) DeleteSecret(_ context.Context, req wire.DeleteSecretRequestObject) (wire.DeleteSecretResponseObject, error) {
	man, err := s.secretsOf(req.Name)
	if err != nil {
		return nil, err
	}
	var missing *plugins.NotFoundError
	if err := s.o.Secrets.Delete(man.Name, req.Secret); errors.As(err, &missing) {
		return nil, &requestError{Code: codeSecretNotFound, Cause: err}
	} else if err != nil {
		return nil, err
	}
	return wire.DeleteSecret204Response{}, nil
}

// findings is how a plugin is not as it was when it was installed.
func (s *server) findings(name string) []wire.Finding {
	_, man, err := s.o.Plugins.Instance(name)
	if err != nil {
		return nil // told as the plugin's error
	}
	var out []wire.Finding
	for _, f := range plugins.Examine(man) {
		out = append(out, wire.Finding{Code: f.Code, Message: f.Message, Next: f.Mend, Blocks: f.Blocks})
	}
	return out
}
