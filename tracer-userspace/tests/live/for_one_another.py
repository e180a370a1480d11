"""Connections over TLS whose bytes go through memory: threads receive and send for one another. Each line says the port of its connection.

Arguments: port, certificate, key, who: `own` (each thread does all for one connection), `random` (each does anything for any), `next` (each receives
for one connection and decrypts for the next one, and sends for the one before; lines that look alike)."""

import random
import select
import socket
import ssl
import sys
import threading
import time

PORT, CERTIFICATE, KEY, WHO = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
CONNECTIONS, SECONDS = 4, 2.0


def serve(listener, context):
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=echo, args=(context, sock), daemon=True).start()


def echo(context, sock):
    try:
        with context.wrap_socket(sock, server_side=True) as stream:
            while got := stream.recv(4096):
                stream.sendall(got)
    except OSError:
        pass


class Connection:
    def __init__(self, context):
        self.sock = socket.create_connection(("127.0.0.1", PORT))
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing)
        self.lock = threading.Lock()
        self.name = b"P%05d" % self.sock.getsockname()[1]
        while True:
            try:
                self.session.do_handshake()
                self.flush()
                return
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(self.sock.recv(65536))

    def flush(self):
        if data := self.outgoing.read():
            self.sock.sendall(data)

    def write(self):
        self.session.write(self.name + b" " + b"x" * (50 if WHO == "next" else random.choice((10, 50, 50, 50, 300))) + b"\n")

    def receive(self):
        if select.select([self.sock], [], [], 0.002)[0]:
            self.incoming.write(self.sock.recv(65536))

    def read(self):
        try:
            self.session.read(65536)
        except ssl.SSLWantReadError:
            pass


def work(connections, number, end):
    while time.monotonic() < end:
        own = connections[number]
        if WHO == "own":
            one = other = own
        elif WHO == "next":
            one, other = own, connections[(number + 1) % len(connections)]
        else:
            one, other = random.choice(connections), random.choice(connections)
        for connection, do in ((one, Connection.write), (other, Connection.flush), (one, Connection.receive), (other, Connection.read)):
            with connection.lock:
                do(connection)
            if WHO == "random" and random.random() < 0.3:
                one, other = other, one


server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(CERTIFICATE, KEY)
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
listener = socket.create_server(("127.0.0.1", PORT))
threading.Thread(target=serve, args=(listener, server), daemon=True).start()
connections = [Connection(client) for _ in range(CONNECTIONS)]
# The tracer finds the process by its connections.
time.sleep(1.5)
end = time.monotonic() + SECONDS
threads = [threading.Thread(target=work, args=(connections, number, end)) for number in range(CONNECTIONS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
