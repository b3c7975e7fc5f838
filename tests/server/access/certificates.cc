#include "tests/server/access/certificates.h"

#include <openssl/asn1.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <functional>

namespace attnd::server {
namespace {

std::string Written(const std::function<int(BIO*)>& write) {
  const std::unique_ptr<BIO, void (*)(BIO*)> out(BIO_new(BIO_s_mem()),
                                                 BIO_free_all);
  if (write(out.get()) != 1) return "OpenSSL could not write this";
  char* data = nullptr;
  const auto size = BIO_get_mem_data(out.get(), &data);
  return {data, static_cast<size_t>(size)};
}

}  // namespace

TestCertificate::TestCertificate(const std::string& common_name, int seconds,
                                 const std::string& alternative_names)
    : key_(EVP_EC_gen("P-256"), EVP_PKEY_free),
      certificate_(X509_new(), X509_free) {
  X509* const raw = certificate_.get();
  X509_set_version(raw, X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(raw), 1);
  X509_gmtime_adj(X509_getm_notBefore(raw), -3600);
  X509_gmtime_adj(X509_getm_notAfter(raw), seconds);
  X509_NAME* const name = X509_get_subject_name(raw);
  X509_NAME_add_entry_by_txt(
      name, "CN", MBSTRING_UTF8,
      reinterpret_cast<const unsigned char*>(common_name.c_str()), -1, -1, 0);
  X509_set_issuer_name(raw, name);
  X509_set_pubkey(raw, key_.get());
  if (!alternative_names.empty()) {
    X509_EXTENSION* const extension = X509V3_EXT_conf_nid(
        nullptr, nullptr, NID_subject_alt_name, alternative_names.c_str());
    X509_add_ext(raw, extension, -1);
    X509_EXTENSION_free(extension);
  }
  X509_sign(raw, key_.get(), EVP_sha256());
}

std::string TestCertificate::certificate() const {
  return Written(
      [this](BIO* out) { return PEM_write_bio_X509(out, certificate_.get()); });
}

std::string TestCertificate::key(const std::string& passphrase) const {
  return Written([&](BIO* out) {
    if (passphrase.empty()) {
      return PEM_write_bio_PrivateKey(out, key_.get(), nullptr, nullptr, 0,
                                      nullptr, nullptr);
    }
    return PEM_write_bio_PKCS8PrivateKey(
        out, key_.get(), EVP_aes_256_cbc(), passphrase.c_str(),
        static_cast<int>(passphrase.size()), nullptr, nullptr);
  });
}

}  // namespace attnd::server
