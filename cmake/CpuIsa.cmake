# The CPU kernels, compiled once per instruction-set level and chosen at run time.
#
# Each level is an object library of its own. A source sees OVS_ISA, the name of the namespace it must put everything
# into (v2, v3, v4; baseline elsewhere), and OVS_ISA_LEVEL (2, 3, 4; 0 elsewhere). Nothing outside of that namespace may
# be defined there, inline functions and templates of the standard library included: the linker keeps one copy of those,
# possibly the one for a newer processor than the one at hand. scripts/check_isa_symbols.py looks for it.
include_guard(GLOBAL)
include(CheckCXXCompilerFlag)

option(OVS_CPU_DISPATCH "CPU kernels at several instruction-set levels; OFF: only at the compiler's baseline" ON)

# Which levels this compiler and this processor have: "2;3;4", or "0" for a single baseline.
function(ovs_find_isa_levels out_levels)
    set(levels 0)
    set(processor "${CMAKE_SYSTEM_PROCESSOR}")
    if(CMAKE_OSX_ARCHITECTURES)
        set(processor "${CMAKE_OSX_ARCHITECTURES}")
    endif()
    if(OVS_CPU_DISPATCH AND processor MATCHES "^(x86_64|AMD64|amd64)$")
        check_cxx_compiler_flag(-march=x86-64-v4 OVS_COMPILER_KNOWS_X86_LEVELS)
        if(OVS_COMPILER_KNOWS_X86_LEVELS)
            set(levels 2 3 4)
        else()
            message(WARNING "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} does not know -march=x86-64-v4: "
                            "the CPU kernels are built for the baseline only and will be several times slower. "
                            "GCC 11 and Clang 12 are the first that know it.")
        endif()
    endif()
    set(${out_levels} ${levels} PARENT_SCOPE)
endfunction()

# ovs_add_isa_levels(<target> <settings> <source>...) compiles the sources once per level, with the usage requirements
# of the library <settings>, and adds the objects to <target>. With levels, <target> gets OVS_X86_LEVELS=1.
# Sets OVS_ISA_LEVELS to what was built: "v2,v3,v4" or "baseline".
function(ovs_add_isa_levels target settings)
    ovs_find_isa_levels(levels)
    set(names "")
    foreach(level IN LISTS levels)
        if(level EQUAL 0)
            set(name baseline)
            set(march "")
        else()
            set(name v${level})
            set(march -march=x86-64-v${level})
        endif()
        list(APPEND names ${name})
        if(ARGN)
            add_library(${target}_isa_${name} OBJECT ${ARGN})
            target_link_libraries(${target}_isa_${name} PRIVATE ${settings})
            target_compile_definitions(${target}_isa_${name} PRIVATE OVS_ISA=${name} OVS_ISA_LEVEL=${level})
            target_compile_options(
                ${target}_isa_${name}
                PRIVATE ${march}
                        -ffp-contract=fast # a * b + c may be one instruction; strict C++17 forbids it otherwise
                        -fno-math-errno # sqrt sets no errno, so it is one instruction
                        -fno-trapping-math # nobody reads the floating-point flags, so both sides of a select may be computed
                        -Wno-psabi) # vectors are only passed inside one level
            target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_isa_${name}>)
        endif()
    endforeach()
    if(NOT levels STREQUAL "0")
        target_compile_definitions(${target} PRIVATE OVS_X86_LEVELS=1)
    endif()
    list(JOIN names "," names)
    message(STATUS "CPU kernels: ${names}")
    set(OVS_ISA_LEVELS ${names} PARENT_SCOPE)
endfunction()
