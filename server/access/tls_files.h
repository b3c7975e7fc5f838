// Reads certificates and keys, and checks that a server can use them before it
// replaces those in use. Does not use gRPC.
#ifndef ATTND_SERVER_ACCESS_TLS_FILES_H_
#define ATTND_SERVER_ACCESS_TLS_FILES_H_

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace attnd::server {

// Where the files are, as the options of the same names give it.
struct TlsPaths {
  std::string cert;
  std::string key;
  std::string client_ca;  // empty: clients need no certificate
};

// The contents of the files, in PEM.
struct TlsFiles {
  std::string cert;  // the server's own certificate, then intermediate ones
  std::string key;   // the private key of the first certificate
  // The certificates of those who sign the certificates of clients.
  std::optional<std::string> client_ca;

  bool operator==(const TlsFiles&) const = default;
};

// Reads the files, without a check of what they contain.
absl::StatusOr<TlsFiles> ReadTlsFiles(const TlsPaths& paths);

// Checks everything that could make a handshake with `files` fail on the
// server's side: the texts parse, the key belongs to the certificate, OpenSSL
// accepts both, and neither the certificate nor all authorities of clients have
// expired. Returns the time at which
// the server's certificate expires. Errors name the option and the file that is
// wrong, and contain nothing of the key.
absl::StatusOr<std::chrono::system_clock::time_point> CheckTlsFiles(
    const TlsFiles& files, const TlsPaths& paths);

}  // namespace attnd::server

#endif  // ATTND_SERVER_ACCESS_TLS_FILES_H_
