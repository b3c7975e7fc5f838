// The details that a server's refusal carries, as bytes. Apart from the tests,
// because google.rpc.ErrorInfo must not be instrumented; see
// cmake/attnd_target.cmake.
#ifndef ATTND_TESTS_CLIENT_ERROR_STATUS_H_
#define ATTND_TESTS_CLIENT_ERROR_STATUS_H_

#include <string>

namespace attnd::client {

// A serialized google.rpc.Status with ErrorInfo (domain "attnd") and one field
// violation.
std::string SerializedRefusal(const std::string& reason,
                              const std::string& field,
                              const std::string& description);

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_ERROR_STATUS_H_
