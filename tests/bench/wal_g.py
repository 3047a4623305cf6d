"""WAL-G, and WAL-RUS, which is called alike. Neither is a package of Debian's: `--peers WAL-G=PROGRAM` says where one is.

lz4, and as many streams as Walhalla has. WAL-G syncs each file that it restores, unless it is told not to, and no directory.
WAL-RUS syncs nothing.
"""

import shutil


class WalG:
    def __init__(self, host, name, program, server, workers):
        self.name = name
        self.program = shutil.copy(program, host.directory / f"peer-{name}")
        self.server = server
        streams = {f"WALG_{kind}_CONCURRENCY": str(workers) for kind in ("UPLOAD", "UPLOAD_DISK", "DOWNLOAD")}
        self.env = {"WALG_COMPRESSION_METHOD": "lz4", "AWS_S3_FORCE_PATH_STYLE": "true"} | streams | server.env

    def on_s3(self, settings, prefix):
        """Its settings, from those of Walhalla for the same line."""
        endpoint = settings["AWS_ENDPOINT_URL_S3"]
        bucket = settings["WALHALLA_STORE"].split("/")[2]
        authority = settings["WALHALLA_CA_FILE"]
        keys = {name: settings[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")}
        # WAL-G asks for the authority by a setting of its own, WAL-RUS where OpenSSL's programs do.
        trusted = {"WALG_S3_CA_CERT_FILE": authority, "SSL_CERT_FILE": authority} if endpoint.startswith("https") else {}
        return self.env | keys | trusted | {"AWS_ENDPOINT": endpoint, "WALG_S3_PREFIX": f"s3://{bucket}/{prefix}-{self.name}"}

    def in_directory(self, directory):
        return self.env | {"WALG_FILE_PREFIX": str(directory)}

    def without_sync(self, env):
        """The same settings, with which WAL-G does not sync what it restores either. WAL-RUS knows no such setting."""
        return env | {"WALG_TAR_DISABLE_FSYNC": "true"}

    def backup(self):
        return [self.program, "backup-push", "--full", self.server.data]

    def restore(self):
        """A command of the shell, in which `{to}` stands for the empty directory."""
        return f"{self.program} backup-fetch {{to}} LATEST"
