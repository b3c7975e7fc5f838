# What `cmake --install` installs beside the server's binary: attnctl, the
# client library with its headers, a CMake package and the contract.
#
#   find_package(attnd REQUIRED CONFIG)
#   target_link_libraries(mine PRIVATE attnd::client)

include(CMakePackageConfigHelpers)

set(attnd_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/attnd)
set(attnd_include_dir ${CMAKE_INSTALL_INCLUDEDIR}/attnd)

# Sources write #include "client/attention_client.h", in the tree and out of it.
target_include_directories(attnd_client INTERFACE
  $<INSTALL_INTERFACE:${attnd_include_dir}>)
install(TARGETS attnctl RUNTIME)
# The others are no part of the library's interface, only of its linking.
install(TARGETS attnd_client attnd_merge attnd_messages attnd_transport
  EXPORT attnd_targets ARCHIVE)
install(FILES
  client/attention_client.h client/error_details.h client/merge.h
  client/shared_region.h client/types.h
  DESTINATION ${attnd_include_dir}/client)
install(FILES
  proto/attnd/v1/attention.proto
  proto/attnd/v1/attention_grpc_service_config.json
  DESTINATION ${CMAKE_INSTALL_DATADIR}/attnd/proto/attnd/v1)

install(EXPORT attnd_targets NAMESPACE attnd:: FILE attndTargets.cmake
  DESTINATION ${attnd_package_dir})
configure_package_config_file(
  cmake/attndConfig.cmake.in ${PROJECT_BINARY_DIR}/attndConfig.cmake
  INSTALL_DESTINATION ${attnd_package_dir})
# Before 1.0 every minor version may break what the last one had.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/attndConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/attndConfig.cmake
  ${PROJECT_BINARY_DIR}/attndConfigVersion.cmake
  DESTINATION ${attnd_package_dir})
