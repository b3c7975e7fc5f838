#include "tests/client/test_certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace attnd::client {
namespace {

constexpr int64_t kHourSeconds = 3600;

std::shared_ptr<EVP_PKEY> MakeKey() {
  return {EVP_EC_gen("P-256"), EVP_PKEY_free};
}

std::string Pem(const std::function<void(BIO*)>& write) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()),
                                                      BIO_free);
  write(bio.get());
  char* text = nullptr;
  const auto size = static_cast<size_t>(BIO_get_mem_data(bio.get(), &text));
  return {text, size};
}

std::string PemOf(X509* certificate) {
  return Pem([&](BIO* bio) { PEM_write_bio_X509(bio, certificate); });
}

// Makes a certificate for `key` that `issuer` signs with `issuer_key`. If
// `issuer` is null, the certificate is that of an authority and signs itself.
std::shared_ptr<X509> MakeCertificate(EVP_PKEY* key, X509* issuer,
                                      EVP_PKEY* issuer_key, int extension,
                                      const std::string& value, bool expired) {
  std::shared_ptr<X509> certificate(X509_new(), X509_free);
  X509* const x509 = certificate.get();
  X509_set_version(x509, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(x509), issuer == nullptr ? 1 : 2);
  X509_gmtime_adj(X509_getm_notBefore(x509), -2 * kHourSeconds);
  X509_gmtime_adj(X509_getm_notAfter(x509),
                  expired ? -kHourSeconds : kHourSeconds);
  X509_NAME_add_entry_by_txt(
      X509_get_subject_name(x509), "CN", MBSTRING_ASC,
      reinterpret_cast<const unsigned char*>(
          issuer == nullptr ? "authority of a test" : "test"),
      -1, -1, 0);
  X509_set_issuer_name(
      x509, X509_get_subject_name(issuer == nullptr ? x509 : issuer));
  X509_set_pubkey(x509, key);
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer == nullptr ? x509 : issuer, x509, nullptr,
                 nullptr, 0);
  X509_EXTENSION* const made =
      X509V3_EXT_conf_nid(nullptr, &context, extension, value.c_str());
  X509_add_ext(x509, made, -1);
  X509_EXTENSION_free(made);
  X509_sign(x509, issuer_key, EVP_sha256());
  return certificate;
}

}  // namespace

TestAuthority::TestAuthority()
    : key_(MakeKey()),
      x509_(MakeCertificate(key_.get(), nullptr, key_.get(),
                            NID_basic_constraints, "critical,CA:TRUE", false)),
      cert_(PemOf(x509_.get())) {}

TestIdentity TestAuthority::Issue(const std::string& names,
                                  bool expired) const {
  const std::shared_ptr<EVP_PKEY> key = MakeKey();
  const std::shared_ptr<X509> certificate = MakeCertificate(
      key.get(), x509_.get(), key_.get(), NID_subject_alt_name, names, expired);
  return {.cert = PemOf(certificate.get()), .key = Pem([&](BIO* bio) {
                                              PEM_write_bio_PrivateKey(
                                                  bio, key.get(), nullptr,
                                                  nullptr, 0, nullptr, nullptr);
                                            })};
}

}  // namespace attnd::client
