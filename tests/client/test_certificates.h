// Makes certificates for tests of TLS, so that no private key is in the
// repository.
#ifndef ATTND_TESTS_CLIENT_TEST_CERTIFICATES_H_
#define ATTND_TESTS_CLIENT_TEST_CERTIFICATES_H_

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

namespace attnd::client {

// A certificate and its private key, as PEM.
struct TestIdentity {
  std::string cert;
  std::string key;
};

// An authority that signs certificates. They are valid for an hour, unless
// `expired` says that they ended an hour ago.
class TestAuthority {
 public:
  TestAuthority();

  // Returns the certificate of the authority, as PEM.
  const std::string& cert() const { return cert_; }
  // Signs a certificate for `names`, for example "DNS:localhost,IP:127.0.0.1".
  TestIdentity Issue(const std::string& names, bool expired = false) const;

 private:
  std::shared_ptr<EVP_PKEY> key_;
  std::shared_ptr<X509> x509_;
  std::string cert_;
};

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_TEST_CERTIFICATES_H_
