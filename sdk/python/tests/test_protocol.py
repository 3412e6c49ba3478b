"""The state machine by itself: what each side may do in each state."""
from __future__ import annotations

import json
import unittest
from typing import Any, List

from .harness import frame
from cjmworker import _protocol as p
from cjmworker._frames import FrameDecoder


def ask(machine: p.WorkerProtocol, method: str, number: str = "1", **params: Any) -> p.Request:
    data = frame({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
    (event,) = machine.receive(data)
    return event


def hello(machine: p.WorkerProtocol, **params: Any) -> p.Request:
    return ask(machine, "hello", "h", protocol=[1], **params)


def ready(**params: Any) -> p.WorkerProtocol:
    protocol = p.WorkerProtocol()
    hello(protocol, **params)
    protocol.ready("h", {"protocol": 1}, b"{}")
    return protocol


def headers(buffers: List[bytes]) -> List[Any]:
    return [header for header, _ in FrameDecoder().feed(b"".join(buffers))]


class States(unittest.TestCase):
    def test_the_tables_are_closed(self) -> None:
        states = {p.NEW, p.LOADING, p.READY, p.CLOSING, p.CLOSED}
        self.assertEqual(set(p.RECEIVE), states)
        self.assertEqual(set(p.SEND), states)
        for table in (p.RECEIVE, p.SEND):
            for moves in table.values():
                self.assertLessEqual({to for to in moves.values() if to}, states)

    def test_every_request_in_every_state(self) -> None:
        every = {name for moves in p.RECEIVE.values() for name in moves}
        for state, moves in p.RECEIVE.items():
            for method in sorted(every):
                with self.subTest(state=state, method=method):
                    protocol = p.WorkerProtocol()
                    protocol.state = state
                    event = ask(protocol, method, job="j", protocol=[1])
                    if method in moves:
                        self.assertIs(type(event), p.Request)
                        self.assertEqual(protocol.state, moves[method] or state)
                    else:
                        self.assertIsInstance(event, p.Refused)
                        self.assertEqual((event.code, protocol.state), (p.E_INVALID_REQUEST, state))

    def test_life(self) -> None:
        protocol = p.WorkerProtocol()
        self.assertEqual(protocol.state, p.NEW)
        hello(protocol)
        self.assertEqual(protocol.state, p.LOADING)
        protocol.ready("h", {"protocol": 1}, b"{}")
        self.assertEqual(protocol.state, p.READY)
        ask(protocol, "shutdown", "s")
        self.assertEqual(protocol.state, p.CLOSING)
        self.assertIsInstance(ask(protocol, "execute", "e", job="j"), p.Refused)

    def test_limits_and_slots_come_with_hello(self) -> None:
        protocol = ready(limits={"max_header": 200, "max_payload": 10}, concurrency=2)
        self.assertEqual((protocol.max_header, protocol.max_payload, protocol.concurrency), (200, 10, 2))
        ask(protocol, "execute", "1", job="a")
        ask(protocol, "execute", "2", job="b")
        refused = ask(protocol, "execute", "3", job="c")
        self.assertEqual((refused.code, refused.reason), (p.E_INVALID_REQUEST, "2 calls are executing, no more are allowed"))
        with self.assertRaises(p.LocalProtocolError):
            protocol.answer("1", {}, b"12345678901")
        protocol.answer("1", {}, b"1234567890")
        self.assertIs(type(ask(protocol, "execute", "4", job="a")), p.Request)


class Sending(unittest.TestCase):
    def test_what_we_must_not_send(self) -> None:
        protocol = p.WorkerProtocol()
        wrong = [
            lambda: protocol.ready("h", {}, b""),
            lambda: protocol.answer("x", {}),
            lambda: protocol.chunk("j", b"1"),
        ]
        for call in wrong:
            with self.assertRaises(p.LocalProtocolError):
                call()
        hello(protocol)
        with self.assertRaises(p.LocalProtocolError):
            protocol.answer("h", {})  # hello is answered by ready or load_error
        protocol.load_error("h", p.E_PLUGIN, "no", None)
        with self.assertRaises(p.LocalProtocolError):
            protocol.notify("log", {"message": "late"})

    def test_an_answer_is_sent_once_and_ends_the_chunks(self) -> None:
        protocol = ready()
        ask(protocol, "execute", "1", job="j", stream=True)
        numbers = [headers(protocol.chunk("j", b"1"))[0]["params"]["n"] for _ in range(3)]
        self.assertEqual((numbers, protocol.chunks_sent("j")), ([1, 2, 3], 3))
        protocol.answer("1", {"chunks": 3})
        for late in (lambda: protocol.answer("1", {}), lambda: protocol.chunk("j", b"1")):
            with self.assertRaises(p.LocalProtocolError):
                late()

    def test_a_refused_answer_leaves_the_request_open(self) -> None:
        protocol = ready(limits={"max_payload": 5})
        ask(protocol, "execute", "1", job="j")
        with self.assertRaises(p.LocalProtocolError):
            protocol.answer("1", {}, b"123456")
        protocol.error("1", p.E_PLUGIN, "too large")

    def test_texts_are_cut_until_the_header_fits(self) -> None:
        protocol = ready(limits={"max_header": 300})
        (log,) = headers(protocol.notify("log", {"level": "info", "message": "\x01" * 5000}, "message"))
        self.assertIn("…", log["params"]["message"])
        ask(protocol, "execute", "1", job="j")
        (answer,) = headers(protocol.error("1", p.E_PLUGIN, "m" * 5000, {"traceback": "t" * 9000, "category": "fatal"}))
        self.assertLessEqual(len(json.dumps(answer)), 330)
        self.assertEqual(answer["error"]["data"]["category"], "fatal")

    def test_member_order_is_that_of_the_page(self) -> None:
        protocol = ready()
        ask(protocol, "ping", "7")
        (data,) = protocol.answer("7", {})
        self.assertEqual(data[8:], b'{"jsonrpc":"2.0","id":"7","result":{}}')


class Receiving(unittest.TestCase):
    def test_requests_before_a_broken_frame_are_delivered(self) -> None:
        protocol = ready()
        good = frame({"jsonrpc": "2.0", "id": "1", "method": "ping"})
        events = protocol.receive(good + good.replace(b'"1"', b'"2"') + b"\xff" * 8)
        self.assertEqual([type(event) for event in events], [p.Request, p.Request, p.Broken])
        self.assertEqual(protocol.state, p.CLOSED)

    def test_request_ids_in_use_and_answers_to_nothing(self) -> None:
        protocol = ready()
        ask(protocol, "schema", "1")
        self.assertEqual(ask(protocol, "ping", "1").error.rule, "bad_id")
        protocol = ready()
        (event,) = protocol.receive(frame({"jsonrpc": "2.0", "id": "9", "result": {}}))
        self.assertEqual(event.error.rule, "unknown_id")

    def test_notifications_are_ignored(self) -> None:
        self.assertEqual(ready().receive(frame({"jsonrpc": "2.0", "method": "hm", "params": {"job": 1}})), [])


if __name__ == "__main__":
    unittest.main()
