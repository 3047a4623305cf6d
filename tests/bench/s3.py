"""An S3 server behind TLS, on a line with latency.

    client ─▶ haproxy: TLS ─▶ slow_line: so many ms a request ─▶ s3_server, its objects in memory

pgBackRest speaks S3 over TLS only, so that Walhalla does the same. haproxy passes bytes on and reads nothing in them.
"""

import shutil
import socket

from host import free_port

KEY = "bench-key"
SECRET = "bench-secret"
BUCKET = "bench"

PROXY = """
global
  nbthread 1
defaults
  mode tcp
  timeout connect 10s
  timeout client 10m
  timeout server 10m
"""
LISTENER = """
listen latency-{latency_ms}
  bind 127.0.0.1:{port} ssl crt {certificate}
  server s3 {server}
"""


class S3:
    """`ports` are those for TLS by latency, `lines` those before it: `host:port` by latency."""

    def __init__(self, host, programs, latencies_ms, minio=None):
        """`minio` is the program of a MinIO that takes the place of the tests' server."""
        self.host = host
        self.programs = programs
        self.objects = host.make(host.memory / "s3")
        self.certificates = host.make(host.directory / "tls")
        self.make_certificates()
        if minio:
            server = self.minio(minio)
        else:
            server = self.listening("s3_server", self.objects, 0, KEY, SECRET, "--bucket", BUCKET)
        self.lines = {ms: self.listening("slow_line", server, ms) if ms else server for ms in latencies_ms}
        self.ports = {latency_ms: free_port() for latency_ms in latencies_ms}
        config = PROXY
        for latency_ms, port in self.ports.items():
            certificate = self.certificates / "server.pem"
            config += LISTENER.format(latency_ms=latency_ms, port=port, certificate=certificate, server=self.lines[latency_ms])
        host.start(["haproxy", "-db", "-f", host.write(host.directory / "haproxy.cfg", config)])

    def minio(self, program):
        """Starts MinIO; returns `host:port`. A directory in its own is a bucket."""
        self.host.make(self.objects / BUCKET)
        port = free_port()
        program = shutil.copy(program, self.host.directory / "minio")
        env = {"MINIO_ROOT_USER": KEY, "MINIO_ROOT_PASSWORD": SECRET}
        process = self.host.start([program, "server", "--quiet", "--address", f"127.0.0.1:{port}", self.objects], env=env)
        self.host.wait_for(lambda: is_open(port), "MinIO", process)
        return f"127.0.0.1:{port}"

    def listening(self, example, *arguments):
        """Starts an example program; returns `host:port`."""
        log = self.host.directory / f"{example}.{len(self.host.running)}.log"
        with open(log, "wb") as output:
            process = self.host.start([self.programs / example, *arguments], output=output)
        return self.host.await_line(process, log, "listening on http://")

    def make_certificates(self):
        """An authority, and a certificate of the server's that it signed."""
        self.host.shell("""
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=bench-authority \\
              -keyout authority.key -out authority.pem
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout server.key -out server.csr
            echo 'subjectAltName = IP:127.0.0.1' >server.ext
            openssl x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 30 \\
              -extfile server.ext -out server.crt
            cat server.crt server.key >server.pem""", cwd=self.certificates)

    def walhalla(self, latency_ms, prefix):
        """Settings of Walhalla's."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": f"https://127.0.0.1:{self.ports[latency_ms]}",
            "WALHALLA_CA_FILE": str(self.certificates / "authority.pem"),
            "WALHALLA_STORE": f"s3://{BUCKET}/{prefix}",
        }

    def walhalla_without_tls(self, latency_ms, prefix):
        return self.walhalla(latency_ms, prefix) | {"AWS_ENDPOINT_URL_S3": f"http://{self.lines[latency_ms]}"}

    def pgbackrest(self, latency_ms, prefix):
        """Settings of pgBackRest's; it does not check the certificate, which is less work."""
        return f"""
repo1-type=s3
repo1-path=/{prefix}
repo1-s3-bucket={BUCKET}
repo1-s3-endpoint=127.0.0.1
repo1-storage-host=127.0.0.1
repo1-storage-port={self.ports[latency_ms]}
repo1-s3-region=us-east-1
repo1-s3-uri-style=path
repo1-s3-key={KEY}
repo1-s3-key-secret={SECRET}
repo1-storage-verify-tls=n
"""

    def directory(self, prefix):
        """Where the server keeps the objects."""
        return self.objects / BUCKET / prefix


def is_open(port):
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
