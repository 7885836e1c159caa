"""A real SMTP server for the tests: aiosmtpd from the Debian package, run by the system's Python.

    /usr/bin/python3 tests/smtp_server.py PORT MAILDIR [CERTIFICATE KEY SCHEME]

With a certificate it requires the account ana/secreta, and STARTTLS (smtp) or TLS from the start
(smtps). The recipient's name selects the reply: 451 for `espera@…`, 550 for `nadie@…`.
"""

import asyncio
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import AuthResult

ANSWERS = {"espera": "451 vuelve más tarde", "nadie": "550 no conozco a nadie"}


class Handler(Mailbox):
    async def handle_RCPT(self, server, session, envelope, address, options):
        envelope.rcpt_tos.append(address)
        return ANSWERS.get(address.partition("@")[0], "250 OK")


def authenticate(server, session, envelope, mechanism, login):
    return AuthResult(success=(login.login, login.password) == (b"ana", b"secreta"), handled=False)


def main(port: str, maildir: str, certificate: str = "", key: str = "", scheme: str = "") -> None:
    options = {}
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        options = {"auth_required": True, "authenticator": authenticate}
        options |= ({"tls_context": context, "require_starttls": True} if scheme == "smtp"
                    # aiosmtpd counts STARTTLS only as TLS
                    else {"ssl_context": context, "auth_require_tls": False})
    controller = Controller(Handler(maildir), hostname="127.0.0.1", port=int(port), **options)
    controller.start()
    asyncio.new_event_loop().run_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
