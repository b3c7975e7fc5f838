#include "server/access/tls_files.h"

#include <openssl/asn1.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "server/access/small_file.h"

namespace attnd::server {
namespace {

template <typename T, void (*kFree)(T*)>
struct Free {
  void operator()(T* object) const { kFree(object); }
};
using Certificate = std::unique_ptr<X509, Free<X509, X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY, EVP_PKEY_free>>;
using Context = std::unique_ptr<SSL_CTX, Free<SSL_CTX, SSL_CTX_free>>;
using Text = std::unique_ptr<BIO, Free<BIO, BIO_free_all>>;

constexpr absl::string_view kCertOption = "--tls-cert";
constexpr absl::string_view kKeyOption = "--tls-key";
constexpr absl::string_view kClientCaOption = "--tls-client-ca";

// What OpenSSL said last, in parentheses. It never includes the contents of a
// file.
std::string LastReason() {
  const unsigned long code = ERR_peek_last_error();  // NOLINT: OpenSSL's type
  const char* const reason =
      code == 0 ? nullptr : ERR_reason_error_string(code);
  ERR_clear_error();
  return reason == nullptr ? "" : absl::StrCat(" (", reason, ")");
}

Text Open(const std::string& text) {
  // Ends at a zero byte, as the text does for gRPC.
  return Text(BIO_new_mem_buf(text.c_str(), -1));
}

// Takes the place of OpenSSL's function that asks for a passphrase at the
// terminal.
int NoPassphrase(char*, int, int, void*) { return -1; }

absl::StatusOr<std::vector<Certificate>> ReadCertificates(
    const std::string& text, absl::string_view option,
    const std::string& path) {
  const Text source = Open(text);
  std::vector<Certificate> certificates;
  while (X509* const next =
             PEM_read_bio_X509(source.get(), nullptr, NoPassphrase, nullptr)) {
    certificates.emplace_back(next);
  }
  // The end of the text is an error too, but not of the file.
  const unsigned long code = ERR_peek_last_error();  // NOLINT: OpenSSL's type
  const bool at_end = ERR_GET_LIB(code) == ERR_LIB_PEM &&
                      ERR_GET_REASON(code) == PEM_R_NO_START_LINE;
  if (at_end && !certificates.empty()) {
    ERR_clear_error();
    return certificates;
  }
  return FileError(
      option, path,
      absl::StrCat("expected certificates in PEM (-----BEGIN CERTIFICATE-----),"
                   " but could not read certificate ",
                   certificates.size() + 1, LastReason()));
}

absl::StatusOr<std::chrono::system_clock::time_point> ExpiryOf(
    const X509* certificate, const std::string& path) {
  std::tm end{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &end) != 1) {
    return FileError(kCertOption, path,
                     "the certificate has no readable end date");
  }
  const auto expiry = std::chrono::system_clock::from_time_t(timegm(&end));
  if (expiry > std::chrono::system_clock::now()) return expiry;
  std::array<char, 32> date{};
  std::strftime(date.data(), date.size(), "%Y-%m-%d %H:%M:%S UTC", &end);
  return FileError(kCertOption, path,
                   absl::StrCat("the certificate expired on ", date.data()));
}

}  // namespace

absl::StatusOr<TlsFiles> ReadTlsFiles(const TlsPaths& paths) {
  TlsFiles files;
  ATTND_ASSIGN_OR_RETURN(files.cert, ReadSmallFile(kCertOption, paths.cert));
  ATTND_ASSIGN_OR_RETURN(files.key, ReadSmallFile(kKeyOption, paths.key));
  if (!paths.client_ca.empty()) {
    ATTND_ASSIGN_OR_RETURN(files.client_ca,
                           ReadSmallFile(kClientCaOption, paths.client_ca));
  }
  return files;
}

absl::StatusOr<std::chrono::system_clock::time_point> CheckTlsFiles(
    const TlsFiles& files, const TlsPaths& paths) {
  ERR_clear_error();
  ATTND_ASSIGN_OR_RETURN(std::vector<Certificate> chain,
                         ReadCertificates(files.cert, kCertOption, paths.cert));
  const Key key(PEM_read_bio_PrivateKey(Open(files.key).get(), nullptr,
                                        NoPassphrase, nullptr));
  if (!key) {
    return FileError(
        kKeyOption, paths.key,
        absl::StrCat("expected a private key in PEM without a passphrase, but "
                     "could not read one",
                     LastReason()));
  }
  if (X509_check_private_key(chain.front().get(), key.get()) != 1) {
    ERR_clear_error();
    return FileError(
        kKeyOption, paths.key,
        absl::StrCat("the private key does not belong to the first certificate "
                     "of ",
                     kCertOption, ", ", paths.cert));
  }
  // OpenSSL refuses some certificates and keys only at this step, for example
  // because a key is too short.
  const Context context(SSL_CTX_new(TLS_server_method()));
  if (!context ||
      SSL_CTX_use_certificate(context.get(), chain.front().get()) != 1) {
    return FileError(
        kCertOption, paths.cert,
        absl::StrCat("OpenSSL does not accept the certificate", LastReason()));
  }
  if (SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1) {
    return FileError(
        kKeyOption, paths.key,
        absl::StrCat("OpenSSL does not accept the private key", LastReason()));
  }
  for (size_t i = 1; i < chain.size(); ++i) {
    if (SSL_CTX_add1_chain_cert(context.get(), chain[i].get()) != 1) {
      return FileError(kCertOption, paths.cert,
                       absl::StrCat("OpenSSL does not accept certificate ",
                                    i + 1, " of the file", LastReason()));
    }
  }
  if (files.client_ca) {
    ATTND_ASSIGN_OR_RETURN(
        const std::vector<Certificate> authorities,
        ReadCertificates(*files.client_ca, kClientCaOption, paths.client_ca));
    if (std::all_of(authorities.begin(), authorities.end(),
                    [](const Certificate& authority) {
                      return X509_cmp_current_time(
                                 X509_get0_notAfter(authority.get())) < 0;
                    })) {
      return FileError(kClientCaOption, paths.client_ca,
                       "every certificate has expired, so no client could "
                       "connect");
    }
  }
  return ExpiryOf(chain.front().get(), paths.cert);
}

}  // namespace attnd::server
