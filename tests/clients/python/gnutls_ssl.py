"""What kafka-python asks of Python's `ssl`, over GnuTLS: a client of a real library whose bytes go through that one."""

import ctypes
import ssl
import threading

GNUTLS = ctypes.CDLL("libgnutls.so.30")
for name in ("gnutls_record_recv", "gnutls_record_send"):
    function = getattr(GNUTLS, name)
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_ssize_t

CLIENT, NONBLOCK = 2, 8
CERTIFICATE, PEM = 1, 1
AGAIN, INTERRUPTED, PREMATURE_TERMINATION = -28, -52, -110
BYTES = 1 << 16


def check(result):
    if result < 0:
        GNUTLS.gnutls_strerror.restype = ctypes.c_char_p
        raise ssl.SSLError(result, GNUTLS.gnutls_strerror(result).decode())
    return result


class Context:
    """Stands for an `ssl.SSLContext`."""

    def __init__(self, authority, certificate, key):
        self.credentials = ctypes.c_void_p()
        check(GNUTLS.gnutls_certificate_allocate_credentials(ctypes.byref(self.credentials)))
        check(GNUTLS.gnutls_certificate_set_x509_trust_file(self.credentials, authority.encode(), PEM))
        if certificate:
            check(GNUTLS.gnutls_certificate_set_x509_key_file(self.credentials, certificate.encode(), key.encode(), PEM))

    def wrap_socket(self, sock, **_):
        return Socket(sock, self)


class Socket:
    """Stands for an `ssl.SSLSocket` that does not block."""

    def __init__(self, sock, context):
        self.sock, self.context, self.session = sock, context, ctypes.c_void_p()
        # What `ctypes` calls runs beside other threads of Python.
        self.lock = threading.Lock()
        check(GNUTLS.gnutls_init(ctypes.byref(self.session), CLIENT | NONBLOCK))
        check(GNUTLS.gnutls_set_default_priority(self.session))
        check(GNUTLS.gnutls_credentials_set(self.session, CERTIFICATE, context.credentials))
        GNUTLS.gnutls_session_set_verify_cert(self.session, None, 0)
        GNUTLS.gnutls_transport_set_int2(self.session, sock.fileno(), sock.fileno())

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def moved(self, result):
        if result in (AGAIN, INTERRUPTED):
            raise ssl.SSLWantWriteError() if GNUTLS.gnutls_record_get_direction(self.session) else ssl.SSLWantReadError()
        return check(result)

    def do_handshake(self):
        with self.lock:
            self.moved(GNUTLS.gnutls_handshake(self.session))

    def recv(self, size):
        room = ctypes.create_string_buffer(min(size, BYTES))
        with self.lock:
            result = GNUTLS.gnutls_record_recv(self.session, room, len(room))
            return b"" if result == PREMATURE_TERMINATION else room.raw[: self.moved(result)]

    def send(self, data):
        data = bytes(data[:BYTES])
        with self.lock:
            return self.moved(GNUTLS.gnutls_record_send(self.session, data, len(data)))

    def close(self):
        with self.lock:
            if self.session:
                GNUTLS.gnutls_deinit(self.session)
                self.session = ctypes.c_void_p()
            self.sock.close()
