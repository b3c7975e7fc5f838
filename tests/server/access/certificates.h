// Makes keys and certificates for tests.
#ifndef ATTND_TESTS_SERVER_ACCESS_CERTIFICATES_H_
#define ATTND_TESTS_SERVER_ACCESS_CERTIFICATES_H_

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

namespace attnd::server {

// A key and a certificate that it has signed itself.
class TestCertificate {
 public:
  // The certificate is valid from an hour ago until `seconds` from now.
  // `alternative_names` has the form "DNS:a,DNS:b".
  explicit TestCertificate(const std::string& common_name, int seconds = 3600,
                           const std::string& alternative_names = "");

  std::string certificate() const;                            // PEM
  std::string key(const std::string& passphrase = "") const;  // PEM

 private:
  std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)> key_;
  std::unique_ptr<X509, void (*)(X509*)> certificate_;
};

}  // namespace attnd::server

#endif  // ATTND_TESTS_SERVER_ACCESS_CERTIFICATES_H_
