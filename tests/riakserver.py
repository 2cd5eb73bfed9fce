# SPDX-License-Identifier: Apache-2.0
"""A small in-process stand-in for a Riak node, at the wire.

It speaks as much of the protocol-buffers interface as the engine uses, so
that the real client runs against it: siblings by causal context, secondary
index ranges, tombstones that expire. It proves nothing about faults: there is
one copy of the data, and no quorum, hand-off or anti-entropy.
"""

import base64
import contextlib
import socket
import socketserver
import struct
import threading
import time

import msgpack

from glance_geo.db.engines import riakimport

riakimport.load()

import riak.pb.messages as messages  # noqa: E402
import riak.pb.riak_kv_pb2 as kv  # noqa: E402
import riak.pb.riak_pb2 as pb  # noqa: E402

TOMBSTONE_SECONDS = 3.0


class Siblings:
    """What is at one key: values by dot, and the context that they form."""

    def __init__(self):
        self.values = {}     # dot number -> RpbContent
        self.seen = 0        # one node: a version vector of one entry

    def put(self, context, content):
        known = msgpack.unpackb(context) if context else 0
        self.values = {dot: value for dot, value in self.values.items()
                       if dot > known}
        self.seen += 1
        self.values[self.seen] = content

    @property
    def context(self):
        return msgpack.packb(self.seen)


class Data:
    """The buckets of the stand-in, shared by its connections."""

    def __init__(self):
        self.lock = threading.RLock()
        self.entries = {}    # (type, bucket, key) -> Siblings
        self.properties = {}

    def expire(self, at):
        found = self.entries.get(at)
        if found and all(c.deleted and c.last_mod < time.time()
                         - TOMBSTONE_SECONDS for c in found.values.values()):
            del self.entries[at]


def _copy(content):
    made = pb_content()
    made.CopyFrom(content)
    return made


def pb_content():
    return kv.RpbContent()


class Connection(socketserver.BaseRequestHandler):
    """Answers one client's requests, one after the other."""

    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = self.server.data
        self.server.connections.append(self.request)
        while not self.server.away:
            head = self._exactly(4)
            if head is None:
                return
            body = self._exactly(struct.unpack('!I', head)[0])
            if body is None:
                return
            self.server.calls.append(body[0])
            with data.lock:
                code, answer = self._answer(data, body[0], body[1:])
            text = answer.SerializeToString() if answer is not None else b''
            self.request.sendall(struct.pack('!IB', 1 + len(text), code)
                                 + text)

    def _exactly(self, length):
        parts = b''
        while len(parts) < length:
            try:
                part = self.request.recv(length - len(parts))
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return parts

    def _answer(self, data, code, body):
        if code == messages.MSG_CODE_PING_REQ:
            return messages.MSG_CODE_PING_RESP, None
        if code == messages.MSG_CODE_GET_SERVER_INFO_REQ:
            return (messages.MSG_CODE_GET_SERVER_INFO_RESP,
                    pb.RpbGetServerInfoResp(node=b'fake@here',
                                            server_version=b'3.2.1'))
        for asked, kind, answered, method in (
                (messages.MSG_CODE_GET_REQ, kv.RpbGetReq,
                 messages.MSG_CODE_GET_RESP, self._get),
                (messages.MSG_CODE_PUT_REQ, kv.RpbPutReq,
                 messages.MSG_CODE_PUT_RESP, self._put),
                (messages.MSG_CODE_DEL_REQ, kv.RpbDelReq,
                 messages.MSG_CODE_DEL_RESP, self._delete),
                (messages.MSG_CODE_INDEX_REQ, kv.RpbIndexReq,
                 messages.MSG_CODE_INDEX_RESP, self._index),
                (messages.MSG_CODE_GET_BUCKET_REQ, pb.RpbGetBucketReq,
                 messages.MSG_CODE_GET_BUCKET_RESP, self._properties),
                (messages.MSG_CODE_SET_BUCKET_REQ, pb.RpbSetBucketReq,
                 messages.MSG_CODE_SET_BUCKET_RESP, self._set_properties)):
            if code == asked:
                request = kind()
                request.ParseFromString(body)
                return answered, method(data, request)
        return (messages.MSG_CODE_ERROR_RESP,
                pb.RpbErrorResp(errmsg=b'not in the stand-in', errcode=1))

    @staticmethod
    def _at(request):
        return (request.type or b'default', request.bucket, request.key)

    def _get(self, data, request):
        data.expire(self._at(request))
        found = data.entries.get(self._at(request))
        if found is None:
            return None
        answer = kv.RpbGetResp(vclock=found.context)
        for content in found.values.values():
            if not content.deleted or request.deletedvclock:
                answer.content.add().CopyFrom(content)
        return answer

    def _put(self, data, request):
        at = self._at(request)
        data.expire(at)
        if request.vclock or data.properties.get(at[:2]):
            context = request.vclock
        else:       # no allow_mult: the last write wins
            context = msgpack.packb(1 << 62)
        found = data.entries.setdefault(at, Siblings())
        found.put(context, _copy(request.content))
        if not request.return_body:
            return None
        answer = kv.RpbPutResp(vclock=found.context)
        for content in found.values.values():
            answer.content.add().CopyFrom(content)
        return answer

    def _delete(self, data, request):
        found = data.entries.get(self._at(request))
        if found is not None:
            gone = pb_content()
            gone.value = b''
            gone.deleted = True
            gone.last_mod = int(time.time())
            found.put(request.vclock or found.context, gone)

    def _index(self, data, request):
        low, high = request.range_min, request.range_max
        found = []
        for (kind, bucket, key), siblings in data.entries.items():
            if (kind, bucket) != (request.type or b'default',
                                  request.bucket):
                continue
            for content in siblings.values.values():
                if content.deleted:
                    continue
                if request.index == b'$bucket':
                    found.append((key, key))
                found += [(pair.value, key) for pair in content.indexes
                          if pair.key == request.index
                          and low <= pair.value <= high]
        found = sorted(set(found))
        if request.continuation:
            found = [pair for pair in found
                     if pair > tuple(msgpack.unpackb(
                         base64.b64decode(request.continuation)))]
        answer = kv.RpbIndexResp()
        if request.max_results and len(found) > request.max_results:
            found = found[:request.max_results]
            answer.continuation = base64.b64encode(
                msgpack.packb(found[-1]))
        for value, key in found:
            if request.return_terms:
                pair = answer.results.add()
                pair.key, pair.value = value, key
            else:
                answer.keys.append(key)
        return answer

    def _properties(self, data, request):
        answer = pb.RpbGetBucketResp()
        answer.props.allow_mult = data.properties.get(
            (request.type or b'default', request.bucket), False)
        answer.props.n_val = 3
        return answer

    def _set_properties(self, data, request):
        data.properties[(request.type or b'default', request.bucket)] = (
            request.props.allow_mult)


class RiakStandIn(socketserver.ThreadingTCPServer):
    """``with RiakStandIn() as riak: open_engine(riak.url)``"""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Connection)
        self.data = Data()
        self.calls = []
        self.connections = []
        self.away = False
        threading.Thread(target=self.serve_forever, args=(0.05,),
                         daemon=True).start()

    @property
    def url(self):
        return f'riak://127.0.0.1:{self.server_address[1]}'

    def hang_up(self):
        """Close every connection, and every new one, as a dead node does."""
        self.away = True
        connections, self.connections = self.connections, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def take_calls(self):
        self.away = False

    def __exit__(self, *arguments):
        self.shutdown()
        super().__exit__(*arguments)
