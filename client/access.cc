#include "client/access.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/small_file.h"
#include "base/status_macros.h"
#include "client/error_details.h"

namespace attnd::client {
namespace {

using SteadyClock = std::chrono::steady_clock;

// How often the file of a token is read at most.
constexpr std::chrono::seconds kTokenPeriod{1};
// A server refuses large headers, so a larger token could not be sent.
constexpr size_t kMaxTokenBytes = 4096;
// More than any list of authorities has.
constexpr size_t kMaxFileBytes = 8 << 20;
constexpr absl::string_view kPemBegin = "-----BEGIN";

// Returns the text of a member of TlsOptions, which is the text or a path.
absl::StatusOr<std::string> TextOf(absl::string_view field,
                                   const std::string& value) {
  if (absl::StartsWith(absl::StripLeadingAsciiWhitespace(value), kPemBegin)) {
    return value;
  }
  absl::StatusOr<std::string> text = ReadSmallFile(value, kMaxFileBytes);
  if (!text.ok()) {
    return FieldError(
        field, "a file that can be read",
        absl::StrCat("\"", value, "\": ", text.status().message()));
  }
  return text;
}

// Returns what to call the value of a member of TlsOptions in an error. A text
// may contain a private key, so it must not be repeated.
std::string NameOf(absl::string_view value) {
  return absl::StrContains(value, kPemBegin) ? "the given text"
                                             : absl::StrCat("\"", value, "\"");
}

struct FreeOpenSsl {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename Type>
using OpenSslPtr = std::unique_ptr<Type, FreeOpenSsl>;

OpenSslPtr<BIO> ReaderOf(const std::string& text) {
  return OpenSslPtr<BIO>(
      BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// Returns the first certificate in `text`, or null.
OpenSslPtr<X509> CertificateIn(const std::string& text) {
  return OpenSslPtr<X509>(
      PEM_read_bio_X509(ReaderOf(text).get(), nullptr, nullptr, nullptr));
}

// Returns the private key in `text`, or null. Without a password, an encrypted
// key is not read; OpenSSL must not ask for the password on the terminal.
OpenSslPtr<EVP_PKEY> KeyIn(const std::string& text) {
  const auto no_password = [](char*, int, int, void*) { return -1; };
  return OpenSslPtr<EVP_PKEY>(PEM_read_bio_PrivateKey(
      ReaderOf(text).get(), nullptr, no_password, nullptr));
}

// gRPC reports all of these only as an empty list of addresses.
absl::Status Check(const TlsTexts& texts, const TlsOptions& options) {
  if (!texts.ca.empty() && !CertificateIn(texts.ca)) {
    return FieldError("tls.ca", "certificates in PEM form", NameOf(options.ca));
  }
  if (options.cert.empty()) return absl::OkStatus();
  const OpenSslPtr<X509> certificate = CertificateIn(texts.cert);
  if (!certificate) {
    return FieldError("tls.cert", "a certificate in PEM form",
                      NameOf(options.cert));
  }
  const OpenSslPtr<EVP_PKEY> key = KeyIn(texts.key);
  if (!key) {
    return FieldError("tls.key", "a private key in PEM form, without password",
                      NameOf(options.key));
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return FieldError("tls.key",
                      absl::StrCat("the key of the certificate in tls.cert, ",
                                   NameOf(options.cert)),
                      absl::StrCat("another key in ", NameOf(options.key)));
  }
  return absl::OkStatus();
}

absl::StatusOr<TlsTexts> LoadTls(const TlsOptions& options) {
  if (options.cert.empty() != options.key.empty()) {
    const bool no_key = options.key.empty();
    return FieldError(
        no_key ? "tls.key" : "tls.cert",
        no_key ? "the private key of tls.cert" : "the certificate of tls.key",
        "nothing");
  }
  TlsTexts texts;
  texts.server_name = options.server_name;
  for (const auto& [field, value, text] :
       {std::tuple("tls.ca", &options.ca, &texts.ca),
        std::tuple("tls.cert", &options.cert, &texts.cert),
        std::tuple("tls.key", &options.key, &texts.key)}) {
    if (value->empty()) continue;
    ATTND_ASSIGN_OR_RETURN(*text, TextOf(field, *value));
  }
  const absl::Status checked = Check(texts, options);
  ERR_clear_error();  // gRPC would take these errors for its own
  ATTND_RETURN_IF_ERROR(checked);
  return texts;
}

// Returns what is wrong with a token, or nothing. Does not repeat the token.
std::string TokenError(absl::string_view token) {
  if (token.empty()) return "nothing";
  if (token.size() > kMaxTokenBytes) {
    return absl::StrCat(token.size(), " characters");
  }
  if (!std::all_of(token.begin(), token.end(), absl::ascii_isgraph)) {
    return "a token with other characters";
  }
  return "";
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxFileBytes);
  if (!text.ok()) {
    return FieldError(
        "token_file", "a file that can be read",
        absl::StrCat("\"", path, "\": ", text.status().message()));
  }
  std::string token(absl::StripAsciiWhitespace(*text));
  if (const std::string wrong = TokenError(token); !wrong.empty()) {
    return FieldError("token_file",
                      "one token of 1 to 4096 visible ASCII characters",
                      absl::StrCat(wrong, " in \"", path, "\""));
  }
  return token;
}

bool IsLoopback(absl::string_view host) {
  if (absl::EqualsIgnoreCase(host, "localhost")) return true;
  const std::string text(host);
  in_addr four{};
  if (inet_pton(AF_INET, text.c_str(), &four) == 1) {
    return ntohl(four.s_addr) >> 24 == 127;
  }
  in6_addr six{};
  return inet_pton(AF_INET6, text.c_str(), &six) == 1 &&
         IN6_IS_ADDR_LOOPBACK(&six);
}

// Returns the host of "host", "host:port", "[host]:port" or an IPv6 address.
absl::string_view HostOf(absl::string_view address) {
  if (absl::ConsumePrefix(&address, "[")) {
    return address.substr(0, address.find(']'));
  }
  const size_t colon = address.find(':');
  // An address with several colons is an IPv6 address without a port.
  return colon == address.rfind(':') ? address.substr(0, colon) : address;
}

}  // namespace

BearerToken::BearerToken(std::string path, absl::string_view token)
    : path_(std::move(path)),
      header_(absl::StrCat("Bearer ", token)),
      next_read_(SteadyClock::now() + kTokenPeriod) {}

absl::StatusOr<std::shared_ptr<BearerToken>> BearerToken::FromFile(
    const std::string& path) {
  ATTND_ASSIGN_OR_RETURN(const std::string token, ReadToken(path));
  return std::make_shared<BearerToken>(path, token);
}

absl::StatusOr<std::shared_ptr<BearerToken>> BearerToken::FromText(
    const std::string& token) {
  if (const std::string wrong = TokenError(token); !wrong.empty()) {
    return FieldError("token", "1 to 4096 visible ASCII characters", wrong);
  }
  return std::make_shared<BearerToken>("", token);
}

std::string BearerToken::Header() {
  const std::lock_guard lock(mutex_);
  if (path_.empty()) return header_;
  const SteadyClock::time_point now = SteadyClock::now();
  if (now >= next_read_) {
    next_read_ = now + kTokenPeriod;
    const absl::StatusOr<std::string> token = ReadToken(path_);
    if (token.ok()) header_ = absl::StrCat("Bearer ", *token);
  }
  return header_;
}

absl::StatusOr<Access> Access::Load(const ClientOptions& options) {
  Access access;
  if (options.tls) {
    access.sources = *options.tls;
    ATTND_ASSIGN_OR_RETURN(access.tls, LoadTls(*options.tls));
  }
  if (options.token.empty() && options.token_file.empty()) return access;
  if (!options.token.empty() && !options.token_file.empty()) {
    return FieldError("token_file", "no file, because token is set",
                      absl::StrCat("\"", options.token_file, "\""));
  }
  if (!options.tls && !options.allow_plaintext_token &&
      !StaysOnThisHost(options.target)) {
    return FieldError(
        "tls",
        "TLS, because others could read the token on the way to another host "
        "(allow_plaintext_token sends it anyway)",
        absl::StrCat("no TLS and the target ", options.target));
  }
  ATTND_ASSIGN_OR_RETURN(access.token,
                         options.token.empty()
                             ? BearerToken::FromFile(options.token_file)
                             : BearerToken::FromText(options.token));
  return access;
}

std::string Access::HintFor(absl::string_view message) const {
  // If an authority of the same name, but with another key, is in the list,
  // then OpenSSL's first error is in its ASN.1 part (3.0) or about a signature
  // (3.5).
  if (absl::StrContains(message, "certificate verify failed") ||
      absl::StrContains(message, "asn1 encoding routines") ||
      absl::StrContains(message, "signature failure")) {
    return absl::StrCat(
        "; the server's certificate is not signed by an authority in ",
        sources.ca.empty() ? "the system's list (tls.ca names another)"
                           : absl::StrCat("tls.ca, ", NameOf(sources.ca)),
        ", or it is not valid now");
  }
  if (absl::StrContains(message, "is not in peer certificate")) {
    return "; the server's certificate is for another name; if that is the "
           "right server, set tls.server_name to a name in the certificate";
  }
  if (absl::StrContains(message, "wrong version number")) {
    return "; the server does not seem to use TLS";
  }
  if (absl::StrContains(message, "Trying to connect an http1.x server")) {
    return "; the port is for HTTP/1, as attnd's admin port is "
           "(--admin-listen): calls need the port of --listen, which is 50051 "
           "by default";
  }
  // A server that refuses a handshake closes the connection. gRPC says "last
  // error" only if the connection was never ready.
  if (absl::StrContains(message, "last error: ") &&
      (absl::StrContains(message, "Socket closed") ||
       absl::StrContains(message, "Connection reset"))) {
    if (!tls) return "; the server may require TLS (tls)";
    return sources.cert.empty()
               ? "; the server may require a client certificate (tls.cert and "
                 "tls.key)"
               : absl::StrCat(
                     "; the server may not accept the client certificate in "
                     "tls.cert, ",
                     NameOf(sources.cert));
  }
  return "";
}

bool StaysOnThisHost(absl::string_view target) {
  if (absl::StartsWith(target, "unix:") ||
      absl::StartsWith(target, "unix-abstract:")) {
    return true;
  }
  const bool is_list = absl::ConsumePrefix(&target, "ipv4:") ||
                       absl::ConsumePrefix(&target, "ipv6:");
  if (!is_list && absl::ConsumePrefix(&target, "dns:")) {
    // dns://[the server to ask]/host:port
    if (absl::ConsumePrefix(&target, "//")) {
      target.remove_prefix(std::min(target.find('/'), target.size()));
    }
    absl::ConsumePrefix(&target, "/");
  }
  const std::vector<absl::string_view> addresses = absl::StrSplit(target, ',');
  return std::all_of(
      addresses.begin(), addresses.end(),
      [](absl::string_view address) { return IsLoopback(HostOf(address)); });
}

}  // namespace attnd::client
