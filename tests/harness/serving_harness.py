"""An OpenAI-compatible server on a model's folder, with JSON-schema constrained answers: as SGLang and vLLM have.

python tests/harness/serving_harness.py --model-path FOLDER --port 8000       # by hand, to try a client on it
"""

import argparse
import asyncio
import json
from pathlib import Path

STUB = '''"""Stands for SGLang's launcher: takes its flags, and serves the folder with the tests' own server."""
import sys
sys.path.insert(0, {tests!r})
from serving_harness import main
main(sys.argv[1:])
'''


ANY_TEXT = ['"[a-z0-9-]{1,12}"']


def stub_sglang(folder):
    """A package `sglang` in `folder` (to be put on PYTHONPATH) whose launch_server is the server here."""
    package = Path(folder) / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(STUB.format(tests=str(Path(__file__).parent)))
    return package.parent


def pattern_of(schema):
    """The bytes that a flat object of texts may be, spelled as `json.dumps` spells it, as a regular expression."""
    import regex

    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert set(schema["required"]) == set(schema["properties"])
    parts = []
    for name, field in schema["properties"].items():
        assert field["type"] == "string"
        texts = [regex.escape(json.dumps(text, ensure_ascii=False)) for text in field.get("enum", ())]
        parts.append(f"{regex.escape(json.dumps(name))}: (?:{'|'.join(texts or ANY_TEXT)})")
    return regex.compile((r"\{" + ", ".join(parts) + r"\}").encode())


class Model:
    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
        special = set(self.tokenizer.all_special_tokens)
        self.bytes = {
            number: bytes(to_byte[character] for character in token)
            for token, number in self.tokenizer.get_vocab().items()
            if token not in special
        }

    def answer(self, body):
        """(text, whether it was cut, tokens)"""
        import torch

        prompt = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        format_ = body.get("response_format")
        allowed = self._allowed(pattern_of(format_["json_schema"]["schema"]), prompt.shape[1]) if format_ else None
        torch.manual_seed(body.get("seed") or 0)
        heat = {"temperature": body["temperature"], "top_p": body["top_p"]} if body["temperature"] else {}
        with torch.inference_mode():
            ids = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=body["max_tokens"],
                do_sample=bool(heat),
                prefix_allowed_tokens_fn=allowed,
                **heat,
            )[0, prompt.shape[1] :].tolist()
        cut = ids[-1] != self.tokenizer.eos_token_id
        return self.tokenizer.decode(ids, skip_special_tokens=True), cut, len(ids)

    def _allowed(self, pattern, start):
        def allowed(batch, ids):
            written = b"".join(self.bytes[number] for number in ids[start:].tolist())
            if pattern.fullmatch(written):
                return [self.tokenizer.eos_token_id]
            return [n for n, token in self.bytes.items() if pattern.fullmatch(written + token, partial=True)]

        return allowed


def app_of(model, name, api_key):
    from fastapi import FastAPI, Request, Response

    app = FastAPI()
    turn = asyncio.Lock()

    @app.get("/health")
    async def health():
        return Response()

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        if api_key and request.headers.get("authorization") != f"Bearer {api_key}":
            return Response('{"error": "wrong key"}', status_code=401)
        body = await request.json()
        if body["model"] != name:
            return Response(json.dumps({"error": f"no model {body['model']}"}), status_code=404)
        async with turn:
            text, cut, tokens = await asyncio.to_thread(model.answer, body)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        choice["finish_reason"] = "length" if cut else "stop"
        return {"choices": [choice], "usage": {"completion_tokens": tokens}}

    return app


def main(argv=None):
    import uvicorn

    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--served-model-name", default="triage")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key")
    args, _ = parser.parse_known_args(argv)
    app = app_of(Model(args.model_path), args.served_model_name, args.api_key)
    uvicorn.run(app, host=args.host, port=args.port, log_level="error")


if __name__ == "__main__":
    main()
