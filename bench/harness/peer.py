"""The raw limit: the plugin's own class in a loop that frames JSON on a socket, with
nothing around it. ``calls``: one answer for each request. ``stream``: the chunks of one
generator, each sent as it comes. Frames are four bytes of length and the text."""
import importlib
import json
import socket
import sys


def calls(plugin, sock):
    read, send, loads, dumps = sock.makefile("rb").read, sock.sendall, json.loads, json.dumps
    while True:
        head = read(4)
        if len(head) < 4:
            return
        request = loads(read(int.from_bytes(head, "big")))
        text = dumps(plugin.execute(*request["args"], **request["kwargs"])).encode()
        send(len(text).to_bytes(4, "big") + text)


def stream(plugin, sock):
    read, send, loads, dumps = sock.makefile("rb").read, sock.sendall, json.loads, json.dumps
    while True:
        head = read(4)
        if len(head) < 4:
            return
        request = loads(read(int.from_bytes(head, "big")))
        for chunk in plugin.execute_stream(*request["args"], **request["kwargs"]):
            text = dumps(chunk).encode()
            send(len(text).to_bytes(4, "big") + text)
        send(b"\0\0\0\0")


def main():
    mode, module, name = sys.argv[1:]
    plugin = getattr(importlib.import_module(module), name)()
    {"calls": calls, "stream": stream}[mode](plugin, socket.socket(fileno=3))


main()
